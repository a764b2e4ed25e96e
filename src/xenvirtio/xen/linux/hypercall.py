"""Hypercalls through privcmd, and memory that Xen can read while they run.

Xen reads arguments through this process's own page tables and does not fault pages in, so they lie in memory that
the kernel does not move: /dev/xen/hypercall gives such memory; without it locked pages are nearly as good.

Source: Linux include/uapi/xen/privcmd.h, drivers/xen/privcmd-buf.c; xen/include/public/xen.h for the numbers.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from typing import ClassVar, TypeVar

from xenvirtio.errors import HypervisorError, UsageError
from xenvirtio.ids import PAGE_SIZE
from xenvirtio.xen import libc
from xenvirtio.xen.hints import hypervisor_error
from xenvirtio.xen.linux.node import Node

HYPERCALL = 0x00305000

_SCRATCH_BYTES = 16 * PAGE_SIZE
_ALIGNMENT = 8

_Structure = TypeVar("_Structure", bound=ctypes.Structure)


class Number(IntEnum):
    """Hypercall numbers.

    Source: xen/include/public/xen.h, __HYPERVISOR_*.
    """

    MEMORY_OP = 12
    XEN_VERSION = 17
    HVM_OP = 34
    SYSCTL = 35
    DOMCTL = 36
    ARGO = 39


class PrivcmdHypercall(ctypes.Structure):
    _fields_: ClassVar = [("op", ctypes.c_uint64), ("arg", ctypes.c_uint64 * 5)]


class HypercallMemory:
    """Room for the arguments of one hypercall at a time; valid within `Hypercalls.arguments`."""

    def __init__(self, address: int, length_bytes: int) -> None:
        self._next = address
        self._end = address + length_bytes

    def put(self, structure: _Structure) -> _Structure:
        """Copy a structure to where Xen can read and write it; return the copy."""
        address = self.reserve(ctypes.sizeof(structure))
        ctypes.memmove(address, ctypes.addressof(structure), ctypes.sizeof(structure))
        return type(structure).from_address(address)

    def reserve(self, length_bytes: int) -> int:
        """Return the address of so many bytes of unknown content."""
        address = self._next
        self._next = address + -(-length_bytes // _ALIGNMENT) * _ALIGNMENT
        if self._next > self._end:
            raise UsageError(f"hypercall arguments of {length_bytes} bytes")
        return address


class Hypercalls:
    """One open privcmd without restriction to a domain. Any number of threads; one hypercall at a time."""

    def __init__(self, directory: str) -> None:
        self._lock = threading.Lock()
        self._node = Node(f"{directory}/privcmd")
        try:
            self._buffer_node: Node | None = Node(f"{directory}/hypercall")
        except HypervisorError:
            self._buffer_node = None
        self._length_bytes = _SCRATCH_BYTES
        try:
            self._address = self._map_scratch(_SCRATCH_BYTES)
        except OSError as error:
            self._close_nodes()
            raise hypervisor_error("map hypercall memory", error.errno or 0) from error

    @property
    def descriptor(self) -> int:
        """The open privcmd."""
        return self._node.descriptor

    def _map_scratch(self, length_bytes: int) -> int:
        prot = libc.protection(writable=True)
        if self._buffer_node is not None:
            return libc.mmap(length_bytes, prot, libc.MAP_SHARED, self._buffer_node.descriptor)
        flags = libc.MAP_PRIVATE | libc.MAP_ANONYMOUS | libc.MAP_LOCKED | libc.MAP_POPULATE
        return libc.mmap(length_bytes, prot, flags)

    @contextmanager
    def arguments(self, length_bytes: int = 0) -> Iterator[HypercallMemory]:
        """Memory for the arguments of the calls made inside, at least `length_bytes`; other threads wait."""
        with self._lock:
            if not self._address:
                raise UsageError("hypercall after close")
            if length_bytes > self._length_bytes:
                self._grow(-(-length_bytes // PAGE_SIZE) * PAGE_SIZE)
            yield HypercallMemory(self._address, self._length_bytes)

    def _grow(self, length_bytes: int) -> None:
        try:
            address = self._map_scratch(length_bytes)
        except OSError as error:
            raise hypervisor_error("map hypercall memory", error.errno or 0) from error
        libc.munmap(self._address, self._length_bytes)
        self._address, self._length_bytes = address, length_bytes

    def call(self, operation: str, number: Number, *arguments: int, domid: int | None = None) -> int:
        """Run a hypercall; return its result, never negative.

        Raises:
            HypervisorError: Xen refused; names `operation` and `domid`.
        """
        request = PrivcmdHypercall(number, (ctypes.c_uint64 * 5)(*arguments))
        return self._node.ioctl(operation, HYPERCALL, request, domid)

    def close(self) -> None:
        with self._lock:
            address, self._address = self._address, 0
        if address:
            libc.munmap(address, self._length_bytes)
            self._close_nodes()

    def _close_nodes(self) -> None:
        self._node.close()
        if self._buffer_node is not None:
            self._buffer_node.close()
