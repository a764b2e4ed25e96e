"""A block of our own memory at a fixed address."""

from __future__ import annotations

import ctypes
import mmap


class HostBuffer:
    """Page-aligned, zeroed memory of this process, never moved, freed with the object.

    `address` serves raw access and ioctls, `view` serves Python code.
    """

    def __init__(self, length_bytes: int) -> None:
        rounded = -(-max(length_bytes, 1) // mmap.PAGESIZE) * mmap.PAGESIZE
        self.length_bytes = rounded
        self._map = mmap.mmap(-1, rounded, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._anchor = (ctypes.c_char * rounded).from_buffer(self._map)
        self.address = ctypes.addressof(self._anchor)
        self.view = memoryview(self._map)
