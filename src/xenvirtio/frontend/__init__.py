"""Frontends in user space: the driver side of a device as part of an ordinary process."""
