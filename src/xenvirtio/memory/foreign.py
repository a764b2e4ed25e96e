"""Guest-physical memory of a domain we have privilege over, mapped in chunks on first use.

A chunk stays mapped until the guest's memory map changes or the guest goes: mapping one costs more than all the
requests that use it. At most all of the guest's RAM ends up mapped.
"""

from __future__ import annotations

import threading
from itertools import groupby

from xenvirtio.errors import HypervisorError
from xenvirtio.ids import PAGE_SIZE, DomId, Gfn
from xenvirtio.memory.regions import RegionSource, RegionTable
from xenvirtio.xen.capabilities import ForeignMemory, Mapping

CHUNK_BYTES = 2 << 20
ADDRESS_LIMIT = 1 << 48
"""No guest-physical address is wider; frames beyond are not worth asking Xen for."""

ABSENT_MAX = 4096
"""Chunks remembered as not there. Without a bound a guest could make the set grow for ever; without the set each of
its bad addresses would cost a mapping call."""


class ForeignChunks(RegionSource):
    """The mapped chunks of one guest, shared by all its queues."""

    def __init__(self, foreign: ForeignMemory, domid: DomId) -> None:
        super().__init__(RegionTable())
        self._foreign = foreign
        self._domid = domid
        self._lock = threading.Lock()
        self._mappings: list[Mapping] = []
        self._regions: list[tuple[int, int, int, bool]] = []
        self._absent: set[int] = set()

    def fault(self, address: int) -> bool:
        start = address - address % CHUNK_BYTES
        with self._lock:
            if self.table.find(address) >= 0:
                return True  # another queue was faster
            if start in self._absent or start >= ADDRESS_LIMIT:
                return False
            if any(region[0] // CHUNK_BYTES * CHUNK_BYTES == start for region in self._regions):
                return False  # the chunk is mapped and has a hole here
            found = self._map_chunk(start)
            if found:
                self._regions += found
                self.table = RegionTable(self._regions)
            elif len(self._absent) < ABSENT_MAX:
                self._absent.add(start)
            return bool(found)

    def _map_chunk(self, start: int) -> list[tuple[int, int, int, bool]]:
        frames = [Gfn(start // PAGE_SIZE + n) for n in range(CHUNK_BYTES // PAGE_SIZE)]
        try:
            mapping, errors = self._foreign.map_frames(self._domid, frames, writable=True)
        except HypervisorError:
            return []
        regions: list[tuple[int, int, int, bool]] = []
        for present, run in groupby(range(len(frames)), key=lambda n: errors[n] == 0):
            pages = list(run)
            if present:
                offset = pages[0] * PAGE_SIZE
                regions.append((start + offset, len(pages) * PAGE_SIZE, mapping.address + offset, True))
        if regions:
            self._mappings.append(mapping)
        else:
            mapping.close()
        return regions

    def drop(self) -> None:
        """Unmap everything. No queue may be using guest memory: pause or stop them first."""
        with self._lock:
            self.table = RegionTable()
            self._regions.clear()
            self._absent.clear()
            for mapping in self._mappings:
                mapping.close()
            self._mappings.clear()
