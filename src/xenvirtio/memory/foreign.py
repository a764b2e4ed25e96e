"""Guest-physical memory of a domain we have privilege over, mapped in chunks on first use.

A chunk stays mapped until the guest's memory map changes or the guest goes: mapping one costs more than all the
requests that use it. At most all of the guest's RAM ends up mapped.

Xen says INVALIDATE when a page goes away, not when one comes (a balloon that deflates). So what was not there is asked
for again, but at a bounded rate.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
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

RETRY_S = 0.5
"""How long an absent page is believed to be absent."""


class ForeignChunks(RegionSource):
    """The mapped chunks of one guest, shared by all its queues."""

    def __init__(
        self, foreign: ForeignMemory, domid: DomId, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__(RegionTable())
        self._foreign = foreign
        self._domid = domid
        self._clock = clock
        self._lock = threading.Lock()
        self._mappings: list[Mapping] = []
        self._regions: list[tuple[int, int, int, bool]] = []
        self._asked_s: dict[int, float] = {}  # chunks that are absent or have holes, and when that was seen

    def fault(self, address: int) -> bool:
        start = address - address % CHUNK_BYTES
        with self._lock:
            if self.table.find(address) >= 0:
                return True  # another queue was faster
            asked_s = self._asked_s.get(start)
            if start >= ADDRESS_LIMIT or (asked_s is not None and self._clock() - asked_s < RETRY_S):
                return False
            if asked_s is None and len(self._asked_s) >= ABSENT_MAX:
                return False
            others = [region for region in self._regions if not start <= region[0] < start + CHUNK_BYTES]
            is_first_look = len(others) == len(self._regions)
            found = self._map_chunk(start, None if is_first_look else address)
            if sum(region[1] for region in found) < CHUNK_BYTES:
                self._asked_s[start] = self._clock()
            if found:
                # An earlier mapping of this chunk may be in use and stays until `drop`.
                self._regions = others + found
                self.table = RegionTable(self._regions)
            return self.table.find(address) >= 0

    def _map_chunk(self, start: int, needed: int | None) -> list[tuple[int, int, int, bool]]:
        """Map a chunk; return its regions. Nothing is kept of a second look that did not find `needed` either."""
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
        if regions and (needed is None or RegionTable(regions).find(needed) >= 0):
            self._mappings.append(mapping)
            return regions
        mapping.close()
        return []

    def drop(self) -> None:
        """Unmap everything. No queue may be using guest memory: pause or stop them first."""
        with self._lock:
            self.table = RegionTable()
            self._regions.clear()
            self._asked_s.clear()
            for mapping in self._mappings:
                mapping.close()
            self._mappings.clear()
