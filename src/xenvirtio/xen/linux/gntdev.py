"""/dev/xen/gntdev: mapping granted pages, and copying to and from them.

Source: Linux include/uapi/xen/gntdev.h (6.12) and drivers/xen/gntdev.c.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import ClassVar

from xenvirtio.errors import UsageError
from xenvirtio.ids import PAGE_SIZE, DomId, GrantRef
from xenvirtio.xen import libc
from xenvirtio.xen.hints import hypervisor_error
from xenvirtio.xen.linux.node import Node
from xenvirtio.xen.mapping import OpenMappings, OwnedMapping

MAP_GRANT_REF = 0x00184700  # encodes the size with one reference, whatever the count
UNMAP_GRANT_REF = 0x00104701
GRANT_COPY = 0x00104708


class GrantReference(ctypes.Structure):
    _fields_: ClassVar = [("domid", ctypes.c_uint32), ("ref", ctypes.c_uint32)]


class MapGrantRef(ctypes.Structure):
    """The fixed part; `count` references follow."""

    _fields_: ClassVar = [("count", ctypes.c_uint32), ("pad", ctypes.c_uint32), ("index", ctypes.c_uint64)]


class UnmapGrantRef(ctypes.Structure):
    _fields_: ClassVar = [("index", ctypes.c_uint64), ("count", ctypes.c_uint32), ("pad", ctypes.c_uint32)]


class GrantCopy(ctypes.Structure):
    _fields_: ClassVar = [("count", ctypes.c_uint32), ("segments", ctypes.c_uint64)]


class LinuxGrants:
    """`Grants` over one open device node."""

    def __init__(self, path: str) -> None:
        self._node = Node(path)
        self._mappings = OpenMappings()

    @property
    def gntdev_descriptor(self) -> int:
        """For compiled code that issues GRANT_COPY itself."""
        return self._node.descriptor

    def map(self, domid: DomId, references: Sequence[GrantRef], *, writable: bool) -> OwnedMapping:
        count = len(references)
        if count == 0:
            raise UsageError("a mapping of no grant references")
        index = self._announce(domid, references)
        length = count * PAGE_SIZE
        try:  # Xen sees the references here: any bad one is EINVAL
            prot = libc.protection(writable=writable)
            address = libc.mmap(length, prot, libc.MAP_SHARED, self._node.descriptor, index)
        except OSError as error:
            self._forget(index, count)
            raise hypervisor_error("map_grants", error.errno or 0, domid) from error

        def release() -> None:
            # In this order: Xen is asked to unmap when the last of the two is gone.
            libc.munmap(address, length)
            self._forget(index, count)

        return self._mappings.add(address, length, release)

    def _announce(self, domid: DomId, references: Sequence[GrantRef]) -> int:
        """Tell the kernel the references; return the offset to map them at."""
        head_bytes = ctypes.sizeof(MapGrantRef)
        buffer = ctypes.create_string_buffer(head_bytes + len(references) * ctypes.sizeof(GrantReference))
        head = MapGrantRef.from_buffer(buffer)
        head.count = len(references)
        entries = (GrantReference * len(references)).from_buffer(buffer, head_bytes)
        for entry, reference in zip(entries, references, strict=True):
            entry.domid, entry.ref = domid, reference
        self._node.ioctl("map_grants", MAP_GRANT_REF, buffer, domid)
        return int(head.index)

    def _forget(self, index: int, count: int) -> None:
        self._node.ioctl("unmap_grants", UNMAP_GRANT_REF, UnmapGrantRef(index, count))

    def copy(self, segments_address: int, count: int) -> None:
        self._node.ioctl("grant_copy", GRANT_COPY, GrantCopy(count, segments_address))

    def close(self) -> None:
        self._mappings.close()
        self._node.close()
