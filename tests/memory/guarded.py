"""Memory that notices: pages around it that nobody may touch, and pages made read-only.

A stray access is a SIGSEGV that ends the test run, which is what it would do to the daemon.
"""

from __future__ import annotations

import ctypes
import mmap

PROT_NONE = 0
PROT_READ = 1
PROT_WRITE = 2

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


class GuardedMemory:
    """`length_bytes` of zeroed memory between two PROT_NONE pages.

    With `at_end` the last byte lies right before the upper guard page (up to `alignment`), otherwise the first one
    right behind the lower guard page.
    """

    def __init__(self, length_bytes: int, *, at_end: bool = True, alignment: int = 4) -> None:
        page = mmap.PAGESIZE
        self.length_bytes = length_bytes
        self._inner_bytes = -(-length_bytes // page) * page
        self._map = mmap.mmap(-1, self._inner_bytes + 2 * page)
        self._anchor = (ctypes.c_char * len(self._map)).from_buffer(self._map)
        base = ctypes.addressof(self._anchor)
        self._inner = base + page
        slack = self._inner_bytes - length_bytes if at_end else 0
        self.address = self._inner + slack // alignment * alignment
        self._protect(base, page, PROT_NONE)
        self._protect(self._inner + self._inner_bytes, page, PROT_NONE)

    @staticmethod
    def _protect(address: int, length_bytes: int, protection: int) -> None:
        if _libc.mprotect(address, length_bytes, protection):
            raise OSError(ctypes.get_errno(), "mprotect")

    def protect(self, protection: int) -> None:
        """Change what may be done with all pages in between the guards."""
        self._protect(self._inner, self._inner_bytes, protection)

    def read(self, offset: int, length_bytes: int) -> bytes:
        assert 0 <= offset <= offset + length_bytes <= self.length_bytes
        return ctypes.string_at(self.address + offset, length_bytes)

    def write(self, offset: int, data: bytes) -> None:
        assert 0 <= offset <= offset + len(data) <= self.length_bytes
        ctypes.memmove(self.address + offset, data, len(data))

    def contents(self) -> bytes:
        return self.read(0, self.length_bytes)
