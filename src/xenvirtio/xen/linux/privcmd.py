"""/dev/xen/privcmd: layouts and thin calls.

Source: Linux include/uapi/xen/privcmd.h (6.12) and drivers/xen/privcmd.c.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Sequence
from typing import ClassVar

from xenvirtio.errors import HypervisorError
from xenvirtio.ids import PAGE_SIZE, DomId, Gfn
from xenvirtio.xen import libc
from xenvirtio.xen.hints import hypervisor_error
from xenvirtio.xen.linux.dm_op import DmOp
from xenvirtio.xen.linux.node import Node

DM_OP = 0x00105005
MMAPBATCH_V2 = 0x00205004
RESTRICT = 0x00025006
MMAP_RESOURCE = 0x00205007
IRQFD = 0x40185008

RESOURCE_IOREQ_SERVER = 0
IOREQ_FRAME_SYNCHRONOUS = 1

_NO_SUCH_IOCTL = {errno.EOPNOTSUPP, errno.ENOTTY, errno.ENOSYS}


class MmapBatchV2(ctypes.Structure):
    _fields_: ClassVar = [
        ("num", ctypes.c_uint32),
        ("dom", ctypes.c_uint16),
        ("addr", ctypes.c_uint64),
        ("arr", ctypes.c_uint64),
        ("err", ctypes.c_uint64),
    ]


class DmOpBuffer(ctypes.Structure):
    _fields_: ClassVar = [("uptr", ctypes.c_uint64), ("size", ctypes.c_uint64)]


class DmOpCall(ctypes.Structure):
    _fields_: ClassVar = [("dom", ctypes.c_uint16), ("num", ctypes.c_uint16), ("ubufs", ctypes.c_uint64)]


class Restrict(ctypes.Structure):
    _fields_: ClassVar = [("domid", ctypes.c_uint16)]


class MmapResource(ctypes.Structure):
    _fields_: ClassVar = [
        ("dom", ctypes.c_uint16),
        ("type", ctypes.c_uint32),
        ("id", ctypes.c_uint32),
        ("idx", ctypes.c_uint32),
        ("num", ctypes.c_uint64),
        ("addr", ctypes.c_uint64),
    ]


class IrqFd(ctypes.Structure):
    _fields_: ClassVar = [
        ("dm_op", ctypes.c_uint64),
        ("size", ctypes.c_uint32),
        ("fd", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("dom", ctypes.c_uint16),
        ("pad", ctypes.c_uint8 * 2),
    ]


class PreparedDmOp:
    """A device-model operation with all its buffers built, to be issued any number of times.

    Building the buffers costs Python several times what the hypercall does. An operation that returns nothing may
    be issued by several threads at once: the kernel only reads it.
    """

    def __init__(self, domid: DomId, request: DmOp) -> None:
        self.request = request
        self._buffer = DmOpBuffer(ctypes.addressof(request), ctypes.sizeof(request))
        self.call = DmOpCall(domid, 1, ctypes.addressof(self._buffer))


class Privcmd:
    """One open privcmd, restricted to `domid` where the kernel can."""

    def __init__(self, path: str, domid: DomId) -> None:
        self.domid = domid
        self._node = Node(path)
        self._restrict()

    def _restrict(self) -> None:
        """Give up every other domain. In a driver domain the kernel has done it already, or answers EINVAL."""
        try:
            self._node.ioctl("restrict", RESTRICT, Restrict(self.domid), self.domid)
        except HypervisorError as error:
            if error.errno not in _NO_SUCH_IOCTL | {errno.EPERM, errno.EINVAL}:
                self._node.close()
                raise

    def issue(self, operation: str, prepared: PreparedDmOp) -> None:
        self._node.ioctl(operation, DM_OP, prepared.call, self.domid)

    def dm_op(self, operation: str, request: DmOp) -> DmOp:
        """Run one device-model operation; results are in the request afterwards."""
        self.issue(operation, PreparedDmOp(self.domid, request))
        return request

    def map_frames(self, frames: Sequence[Gfn], *, writable: bool) -> tuple[int, list[int]]:
        """Map foreign frames; return the address and 0 or a negative errno for each frame."""
        count = len(frames)
        address = self._reserve("map_frames", count, libc.protection(writable=writable))
        numbers = (ctypes.c_uint64 * count)(*frames)
        errors = (ctypes.c_int32 * count)()
        request = MmapBatchV2(count, self.domid, address, ctypes.addressof(numbers), ctypes.addressof(errors))
        try:
            self._node.ioctl("map_frames", MMAPBATCH_V2, request, self.domid)
        except HypervisorError as error:
            if error.errno != errno.ENOENT:  # ENOENT: some frames are paged out, and say so themselves
                libc.munmap(address, count * PAGE_SIZE)
                raise
        return address, list(errors)

    def map_resource(self, operation: str, kind: int, identifier: int, index: int) -> int:
        """Map one page of a Xen resource; return its address."""
        address = self._reserve(operation, 1, libc.protection(writable=True))
        request = MmapResource(self.domid, kind, identifier, index, 1, address)
        try:
            self._node.ioctl(operation, MMAP_RESOURCE, request, self.domid)
        except HypervisorError:
            libc.munmap(address, PAGE_SIZE)
            raise
        return address

    def _reserve(self, operation: str, pages: int, prot: int) -> int:
        try:
            return libc.mmap(pages * PAGE_SIZE, prot, libc.MAP_SHARED, self._node.descriptor)
        except OSError as error:
            raise hypervisor_error(operation, error.errno or 0, self.domid) from error

    def open_irqfd(self, request: DmOp) -> int | None:
        """Make an eventfd whose every write issues `request` in the kernel; None on kernels without irqfd."""
        descriptor = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        argument = IrqFd(ctypes.addressof(request), ctypes.sizeof(request), descriptor, 0, self.domid)
        try:
            self._node.ioctl("open_irqfd", IRQFD, argument, self.domid)
        except HypervisorError as error:
            os.close(descriptor)
            if error.errno in _NO_SUCH_IOCTL:
                return None
            raise
        return descriptor

    def close(self) -> None:
        self._node.close()
