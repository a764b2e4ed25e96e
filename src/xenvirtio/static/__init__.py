"""Statically partitioned systems: one description becomes device trees, boot configuration and a plan for each VM."""
