"""Mapping the three areas of a queue while it runs: by grant or by frame, as the address of each area says."""

from __future__ import annotations

from xenvirtio.errors import GuestError, HypervisorError
from xenvirtio.ids import GRANT_BIT, PAGE_SIZE, DomId, Gfn, GrantRef
from xenvirtio.virtio.device import QueueConfiguration
from xenvirtio.virtqueue.layout import avail_bytes, desc_bytes, used_bytes
from xenvirtio.xen.capabilities import ForeignMemory, Grants, Mapping

REFERENCE_LIMIT = 1 << 32
FRAME_LIMIT = 1 << 36


class RingMapping:
    """The mapped areas of one queue: `desc`, `avail`, `used` are host addresses, valid until `close`.

    Raises (from the constructor):
        GuestError: an area is misaligned or not in memory that the guest gave us; nothing stays mapped.

    Alignment: VIRTIO 1.4, 2.7 (16, 2 and 4 bytes).
    """

    def __init__(
        self, foreign: ForeignMemory, grants: Grants, domid: DomId, index: int, configuration: QueueConfiguration
    ) -> None:
        self._foreign = foreign
        self._grants = grants
        self._domid = domid
        self._index = index
        self._mappings: list[Mapping] = []
        size = configuration.size
        try:
            self.desc = self._map(configuration.desc, desc_bytes(size), 16)
            self.avail = self._map(configuration.driver, avail_bytes(size), 2)
            self.used = self._map(configuration.device, used_bytes(size), 4)
        except GuestError:
            self.close()
            raise

    def _map(self, address: int, length_bytes: int, alignment: int) -> int:
        """Map one area writable; return the host address of its first byte."""
        if address % alignment:
            raise GuestError(f"ring address {address:#x} is not aligned to {alignment}", queue_index=self._index)
        offset = address % PAGE_SIZE
        pages = (offset + length_bytes + PAGE_SIZE - 1) // PAGE_SIZE
        first = (address & (GRANT_BIT - 1)) // PAGE_SIZE
        granted = address >= GRANT_BIT
        if first + pages > (REFERENCE_LIMIT if granted else FRAME_LIMIT):
            raise GuestError(f"ring address {address:#x} is out of range", queue_index=self._index)
        try:
            mapping = self._map_grants(first, pages) if granted else self._map_frames(first, pages)
        except HypervisorError as error:
            raise GuestError(f"ring at {address:#x} cannot be mapped: {error}", queue_index=self._index) from error
        return mapping.address + offset

    def _map_grants(self, first: int, pages: int) -> Mapping:
        mapping = self._grants.map(self._domid, [GrantRef(first + n) for n in range(pages)], writable=True)
        self._mappings.append(mapping)
        return mapping

    def _map_frames(self, first: int, pages: int) -> Mapping:
        mapping, errors = self._foreign.map_frames(
            self._domid, [Gfn(first + n) for n in range(pages)], writable=True
        )
        self._mappings.append(mapping)
        for error in errors:
            if error:
                raise HypervisorError("mapping a ring", -error, domid=self._domid)
        return mapping

    def close(self) -> None:
        """Unmap all areas. Nothing may use their addresses any more."""
        for mapping in self._mappings:
            mapping.close()
        self._mappings.clear()
