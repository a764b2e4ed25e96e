"""Guest memory named by grant references, reached by copying under Xen's check.

A DMA address with bit 63 set is (1 << 63) | (reference << 12) | offset; a buffer over several pages uses consecutive
references. All copies of a list go into one grant-copy call. A buffer is never mapped, so nothing can still hold a
grant when the driver takes it back (a Linux guest gives up a device for ever when that happens).

Source: Linux drivers/xen/grant-dma-ops.c; include/uapi/xen/gntdev.h, struct gntdev_grant_copy_segment.
"""

from __future__ import annotations

from array import array

from xenvirtio.errors import HypervisorError
from xenvirtio.ids import GRANT_BIT, PAGE_SIZE
from xenvirtio.memory.buffer import HostBuffer
from xenvirtio.memory.guest_memory import GuestMemory
from xenvirtio.memory.transfer import TransferList
from xenvirtio.xen.capabilities import Grants

try:
    import cython
except ImportError:
    from xenvirtio import interpreted as cython

if not cython.compiled:
    from xenvirtio.memory.raw import ioctl, load_u16, store_u16, store_u32, store_u64

REFERENCE_LIMIT = 1 << 32
SEGMENT_BYTES = 24
SOURCE_IS_REFERENCE = 1
DESTINATION_IS_REFERENCE = 2
INITIAL_SEGMENTS = 512
IOCTL_GRANT_COPY = 0x00104708


class GrantMemory(GuestMemory):
    """What one guest granted to this backend, by copy."""

    def __init__(self, grants: Grants, domid: int) -> None:
        self.run = 0
        self._grants = grants
        self._descriptor = getattr(grants, "gntdev_descriptor", -1)
        self._argument_buffer = HostBuffer(16)
        self._argument = self._argument_buffer.address
        self._domid = domid
        self.calls = 0
        self.segments = 0
        self._capacity = 0
        self._reserve(INITIAL_SEGMENTS)

    def _reserve(self, segments: int) -> None:
        self._capacity = segments
        self._buffer = HostBuffer(segments * SEGMENT_BYTES)
        self._base = self._buffer.address
        self._entry_of = memoryview(array("I", bytes(4 * segments)))

    def transfer(self, copies: TransferList) -> int:
        failures = 0
        wanted = 0
        for index in range(copies.count):
            wanted += (copies.length[index] + PAGE_SIZE - 1) // PAGE_SIZE + 1
        if wanted > self._capacity:
            self._reserve(wanted + wanted // 2)
        filled = 0
        for index in range(copies.count):
            guest = copies.guest[index]
            left = copies.length[index]
            reference = (guest & (GRANT_BIT - 1)) // PAGE_SIZE
            offset = guest % PAGE_SIZE
            if guest < GRANT_BIT or reference + (offset + left + PAGE_SIZE - 1) // PAGE_SIZE > REFERENCE_LIMIT:
                copies.failed[index] = 1
                failures += 1
                continue
            host = copies.host[index]
            while left:
                length = PAGE_SIZE - offset
                if length > left:
                    length = left
                segment = self._base + filled * SEGMENT_BYTES
                if copies.to_guest[index]:
                    store_u64(segment, host)
                    guest_side = segment + 8
                    store_u16(segment + 18, DESTINATION_IS_REFERENCE)
                else:
                    store_u64(segment + 8, host)
                    guest_side = segment
                    store_u16(segment + 18, SOURCE_IS_REFERENCE)
                store_u32(guest_side, reference)
                store_u16(guest_side + 4, offset)
                store_u16(guest_side + 6, self._domid)
                store_u16(segment + 16, length)
                store_u16(segment + 20, 0)
                self._entry_of[filled] = index
                filled += 1
                reference += 1
                offset = 0
                host += length
                left -= length
        if filled == 0:
            return failures
        self.calls += 1
        self.segments += filled
        if not self._run(filled):
            # Xen took none or stopped on the way: no status can be trusted, so nothing counts as copied.
            for index in range(copies.count):
                copies.failed[index] = 1
            return copies.count
        for segment_index in range(filled):
            if load_u16(self._base + segment_index * SEGMENT_BYTES + 20) != 0:
                index = self._entry_of[segment_index]
                if not copies.failed[index]:
                    copies.failed[index] = 1
                    failures += 1
        return failures

    def _run(self, count: int) -> bool:
        if self._descriptor >= 0:
            store_u32(self._argument, count)
            store_u64(self._argument + 8, self._base)
            return ioctl(self._descriptor, IOCTL_GRANT_COPY, self._argument) >= 0
        try:
            self._grants.copy(self._base, count)
        except HypervisorError:
            return False
        return True
