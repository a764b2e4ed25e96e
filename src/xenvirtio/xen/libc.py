"""The calls of the C library that Python gives only by object, not by address.

`mmap.mmap` hides the address and refuses to close while a buffer is exported, which would keep a grant mapped;
addresses here are plain integers. Every failure is an `OSError`; callers say which operation it was.
"""

from __future__ import annotations

import ctypes
import os
from typing import NoReturn

PROT_NONE = 0
PROT_READ = 1
PROT_WRITE = 2

MAP_SHARED = 0x01
MAP_PRIVATE = 0x02
MAP_FIXED = 0x10
MAP_ANONYMOUS = 0x20
MAP_LOCKED = 0x2000
MAP_NORESERVE = 0x4000
MAP_POPULATE = 0x8000

_MAP_FAILED = ctypes.c_void_p(-1).value

_libc = ctypes.CDLL(None, use_errno=True)
_mmap = _libc.mmap
_mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
_mmap.restype = ctypes.c_void_p
_munmap = _libc.munmap
_munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_ioctl = _libc.ioctl
_ioctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p)


def _raise_errno() -> NoReturn:
    number = ctypes.get_errno()
    raise OSError(number, os.strerror(number))


def protection(*, writable: bool) -> int:
    return PROT_READ | PROT_WRITE if writable else PROT_READ


def mmap(length_bytes: int, prot: int, flags: int, descriptor: int = -1, offset: int = 0, address: int = 0) -> int:
    """Map memory and return where it lies."""
    result: int | None = _mmap(address, length_bytes, prot, flags, descriptor, offset)
    if result is None or result == _MAP_FAILED:
        _raise_errno()
    return result


def munmap(address: int, length_bytes: int) -> None:
    if _munmap(address, length_bytes) != 0:
        _raise_errno()


def ioctl(descriptor: int, request: int, argument: int) -> int:
    """Run an ioctl whose argument is the address of a structure; return its result, never negative."""
    result: int = _ioctl(descriptor, request, argument)
    if result < 0:
        _raise_errno()
    return result
