"""A disk in memory, for tests and demonstrations: gone with the process."""

from __future__ import annotations

import os

from xenvirtio.resources.file import FileResource


def open_memory_disk(size_bytes: int, *, name: str = "disk", read_only: bool = False) -> FileResource:
    """Make a disk of zeros. Its descriptor is an ordinary file: `os.ftruncate` resizes it."""
    fd = os.memfd_create(name, os.MFD_CLOEXEC)
    os.ftruncate(fd, size_bytes)
    return FileResource(f"memory:{name}", fd, read_only=read_only)
