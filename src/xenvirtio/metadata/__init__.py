"""How the two ends of a device find each other: one API, whichever channel carries it."""
