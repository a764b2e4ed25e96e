"""Measurements a user can repeat: what an operation costs, how that grows, how it compares with another server."""
