"""Memory and file access by integer address: the interpreted twin of `raw.pxd`.

Engine modules reach guest memory through these functions only. Compiled, they are inline C around the
compiler's `__atomic` builtins (`raw.pxd`, never this file); interpreted, they go through ctypes, correct but slow.

An address is a plain `int`. Nothing here checks it: the caller has, once, before.

Ordering: a `load` acquires and a `store` releases; `fence` is sequentially consistent. Interpreted, CPython's
lock and single aligned accesses have to do, which is right on x86 and in practice on arm64 (functional use only).

Functions that may block release the interpreter lock in both forms and return -errno instead of raising.
"""

from __future__ import annotations

import ctypes
import threading

_libc = ctypes.CDLL(None, use_errno=True)
_libc.preadv.restype = ctypes.c_ssize_t
_libc.preadv.argtypes = [ctypes.c_int, ctypes.c_size_t, ctypes.c_int, ctypes.c_int64]
_libc.pwritev.restype = ctypes.c_ssize_t
_libc.pwritev.argtypes = [ctypes.c_int, ctypes.c_size_t, ctypes.c_int, ctypes.c_int64]
_libc.fdatasync.argtypes = [ctypes.c_int]
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
_libc.read.restype = ctypes.c_ssize_t
_libc.read.argtypes = [ctypes.c_int, ctypes.c_size_t, ctypes.c_size_t]
_libc.write.restype = ctypes.c_ssize_t
_libc.write.argtypes = [ctypes.c_int, ctypes.c_size_t, ctypes.c_size_t]
_libc.poll.argtypes = [ctypes.c_void_p, ctypes.c_ulong, ctypes.c_int]
_libc.ioctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_size_t]

_fence_lock = threading.Lock()


def load_u8(address: int) -> int:
    return ctypes.c_uint8.from_address(address).value


def load_u16(address: int) -> int:
    return ctypes.c_uint16.from_address(address).value


def load_u32(address: int) -> int:
    return ctypes.c_uint32.from_address(address).value


def load_u64(address: int) -> int:
    return ctypes.c_uint64.from_address(address).value


def store_u8(address: int, value: int) -> None:
    ctypes.c_uint8.from_address(address).value = value


def store_u16(address: int, value: int) -> None:
    ctypes.c_uint16.from_address(address).value = value


def store_u32(address: int, value: int) -> None:
    ctypes.c_uint32.from_address(address).value = value


def store_u64(address: int, value: int) -> None:
    ctypes.c_uint64.from_address(address).value = value


def or_u32(address: int, bits: int) -> int:
    """Set `bits` atomically (among the users of this module); return the value before."""
    with _fence_lock:
        cell = ctypes.c_uint32.from_address(address)
        before = cell.value
        cell.value = before | bits
    return before


def and_u32(address: int, bits: int) -> int:
    """Keep only `bits` atomically (among the users of this module); return the value before."""
    with _fence_lock:
        cell = ctypes.c_uint32.from_address(address)
        before = cell.value
        cell.value = before & bits
    return before


def fence() -> None:
    """Twice: what stands before is done before the first release, what follows comes after the second acquire, and
    those two keep their order (on arm64 too, whose acquire and release are of that kind). Once, both could slip in."""
    with _fence_lock:
        pass
    with _fence_lock:
        pass


def copy(destination: int, source: int, length_bytes: int) -> None:
    ctypes.memmove(destination, source, length_bytes)


def fill(destination: int, byte: int, length_bytes: int) -> None:
    ctypes.memset(destination, byte, length_bytes)


def preadv(fd: int, iovecs: int, count: int, offset: int) -> int:
    """Read into `count` iovecs (16 bytes each: address u64, length u64) lying at `iovecs`."""
    result: int = _libc.preadv(fd, iovecs, count, offset)
    return result if result >= 0 else -ctypes.get_errno()


def pwritev(fd: int, iovecs: int, count: int, offset: int) -> int:
    result: int = _libc.pwritev(fd, iovecs, count, offset)
    return result if result >= 0 else -ctypes.get_errno()


def fdatasync(fd: int) -> int:
    result: int = _libc.fdatasync(fd)
    return result if result >= 0 else -ctypes.get_errno()


def fallocate(fd: int, mode: int, offset: int, length_bytes: int) -> int:
    result: int = _libc.fallocate(fd, mode, offset, length_bytes)
    return result if result >= 0 else -ctypes.get_errno()


def read(fd: int, address: int, length_bytes: int) -> int:
    result: int = _libc.read(fd, address, length_bytes)
    return result if result >= 0 else -ctypes.get_errno()


def write(fd: int, address: int, length_bytes: int) -> int:
    result: int = _libc.write(fd, address, length_bytes)
    return result if result >= 0 else -ctypes.get_errno()


def ioctl(fd: int, request: int, address: int) -> int:
    result: int = _libc.ioctl(fd, request, address)
    return result if result >= 0 else -ctypes.get_errno()


class _PollFd(ctypes.Structure):
    _fields_ = [("fd", ctypes.c_int), ("events", ctypes.c_short), ("revents", ctypes.c_short)]


def wait_readable(first_fd: int, second_fd: int, timeout_ms: int) -> int:
    """Wait until one of two descriptors can be read or has failed; -1 stands for no descriptor or no timeout.

    Returns bit 0 for the first, bit 1 for the second, 0 after the timeout, or -errno.
    """
    entries = (_PollFd * 2)(_PollFd(first_fd, 1, 0), _PollFd(second_fd, 1, 0))
    result: int = _libc.poll(ctypes.addressof(entries), 2, timeout_ms)
    if result < 0:
        return -ctypes.get_errno()
    return (1 if entries[0].revents else 0) | (2 if entries[1].revents else 0)
