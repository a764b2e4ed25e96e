from __future__ import annotations

import ctypes

import pytest

from xenvirtio.xen import libc


def test_memory_by_address() -> None:
    address = libc.mmap(8192, libc.protection(writable=True), libc.MAP_PRIVATE | libc.MAP_ANONYMOUS)
    ctypes.memset(address, 7, 8192)
    assert ctypes.string_at(address + 8190, 2) == b"\x07\x07"
    libc.munmap(address, 8192)


def test_errors_carry_the_errno() -> None:
    with pytest.raises(OSError, match="Bad file descriptor"):
        libc.ioctl(-1, 0, 0)
    with pytest.raises(OSError, match="Invalid argument"):
        libc.mmap(0, libc.PROT_READ, libc.MAP_PRIVATE | libc.MAP_ANONYMOUS)
