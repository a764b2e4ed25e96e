"""Static shared memory: made with the host, mapped by whoever of its domains asks, never cleared."""

from __future__ import annotations

import os
import weakref

from xenvirtio.errors import UsageError
from xenvirtio.ids import PAGE_SIZE, DomId

SCRUB_BYTE = 0xC2
"""What a debug Xen leaves in memory that it hands out."""


class StaticMemory:
    """A memfd of `length_bytes` that the domains `domids` may map."""

    def __init__(self, length_bytes: int, domids: frozenset[DomId]) -> None:
        if length_bytes <= 0 or length_bytes % PAGE_SIZE:
            raise UsageError(f"a shared region of {length_bytes} bytes")
        self.length_bytes = length_bytes
        self.domids = domids
        self.descriptor = os.memfd_create("xen-shmem", os.MFD_CLOEXEC)
        weakref.finalize(self, os.close, self.descriptor)
        page = bytes([SCRUB_BYTE]) * PAGE_SIZE
        for offset in range(0, length_bytes, PAGE_SIZE):
            os.pwrite(self.descriptor, page, offset)
