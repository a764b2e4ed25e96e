"""/dev/xen/gntalloc: pages granted to another domain, for a user-space frontend in a Xen guest.

Source: Linux include/uapi/xen/gntalloc.h (6.12). The kernel allows 1024 such grants in all unless told otherwise.
"""

from __future__ import annotations

import ctypes
from typing import ClassVar

from xenvirtio.ids import PAGE_SIZE, DomId, GrantRef
from xenvirtio.xen import libc
from xenvirtio.xen.capabilities import GrantedPages
from xenvirtio.xen.hints import hypervisor_error
from xenvirtio.xen.linux.node import Node
from xenvirtio.xen.mapping import OpenMappings

ALLOC_GREF = 0x00184705
DEALLOC_GREF = 0x00104706

FLAG_WRITABLE = 1


class AllocGref(ctypes.Structure):
    """The fixed part; `count` references follow (out)."""

    _fields_: ClassVar = [
        ("domid", ctypes.c_uint16),
        ("flags", ctypes.c_uint16),
        ("count", ctypes.c_uint32),
        ("index", ctypes.c_uint64),  # out
    ]


class DeallocGref(ctypes.Structure):
    _fields_: ClassVar = [("index", ctypes.c_uint64), ("count", ctypes.c_uint32)]


class LinuxGrantAllocator:
    """One open /dev/xen/gntalloc."""

    def __init__(self, path: str = "/dev/xen/gntalloc") -> None:
        self._node = Node(path)
        self._mappings = OpenMappings()

    def allocate(self, domid: DomId, count: int, *, writable: bool) -> GrantedPages:
        """Grant `count` new pages to `domid`. Closing the mapping ends the access."""
        head_bytes = ctypes.sizeof(AllocGref)
        buffer = ctypes.create_string_buffer(head_bytes + 4 * count)
        head = AllocGref.from_buffer(buffer)
        head.domid, head.flags, head.count = domid, FLAG_WRITABLE if writable else 0, count
        self._node.ioctl("allocate_grants", ALLOC_GREF, buffer, domid)
        references = (ctypes.c_uint32 * count).from_buffer(buffer, head_bytes)
        index, length = int(head.index), count * PAGE_SIZE
        try:
            prot = libc.protection(writable=True)
            address = libc.mmap(length, prot, libc.MAP_SHARED, self._node.descriptor, index)
        except OSError as error:
            self._free(index, count)
            raise hypervisor_error("allocate_grants", error.errno or 0, domid) from error

        def release() -> None:
            libc.munmap(address, length)
            self._free(index, count)

        mapping = self._mappings.add(address, length, release)
        return GrantedPages(mapping, [GrantRef(reference) for reference in references])

    def _free(self, index: int, count: int) -> None:
        self._node.ioctl("free_grants", DEALLOC_GREF, DeallocGref(index, count))

    def close(self) -> None:
        self._mappings.close()
        self._node.close()
