"""Guest memory that lies mapped in this process: foreign chunks, a static window, vhost-user regions.

The table is immutable and swapped whole, so a queue thread that is looking something up never sees half a change.
Unmapping what an old table pointed to is another matter: whoever does it first makes the queues pause.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from itertools import pairwise

from xenvirtio.errors import UsageError
from xenvirtio.ids import GRANT_BIT
from xenvirtio.memory.guest_memory import GuestMemory
from xenvirtio.memory.transfer import TransferList

try:
    import cython
except ImportError:
    from xenvirtio import interpreted as cython

if not cython.compiled:
    from xenvirtio.memory.raw import copy


class RegionTable:
    """Sorted, non-overlapping regions: (guest start, length in bytes, host address, writable)."""

    def __init__(self, regions: Iterable[tuple[int, int, int, bool]] = ()) -> None:
        ordered = sorted(regions)
        for before, after in pairwise(ordered):
            if before[0] + before[1] > after[0]:
                raise UsageError(f"guest regions overlap at {after[0]:#x}")
        self.count = len(ordered)
        self.start = memoryview(array("Q", [r[0] for r in ordered] or [0]))
        self.end = memoryview(array("Q", [r[0] + r[1] for r in ordered] or [0]))
        self.host = memoryview(array("Q", [r[2] for r in ordered] or [0]))
        self.writable = memoryview(array("B", [int(r[3]) for r in ordered] or [0]))

    def find(self, address: int) -> int:
        """Return the index of the region that holds `address`, or -1."""
        low = 0
        high = self.count
        while low < high:
            middle = (low + high) >> 1
            if self.end[middle] <= address:
                low = middle + 1
            else:
                high = middle
        if low < self.count and self.start[low] <= address:
            return low
        return -1


class RegionSource:
    """Where a `RegionMemory` gets its table from; subclasses map on demand."""

    def __init__(self, table: RegionTable) -> None:
        self.table = table

    def fault(self, address: int) -> bool:
        """Try to make guest `address` part of `table`; say whether it is worth looking again."""
        return False


class RegionMemory(GuestMemory):
    """Guest memory through a region table."""

    def __init__(self, source: RegionSource) -> None:
        self.run = 0
        self._source = source

    def locate(self, address: int, length: int, writable: bool) -> int:
        self.run = 0
        if address >= GRANT_BIT:
            return 0
        table = self._source.table
        index = table.find(address)
        if index < 0:
            if not self._source.fault(address):
                return 0
            table = self._source.table
            index = table.find(address)
            if index < 0:
                return 0
        if writable and not table.writable[index]:
            return 0
        room = table.end[index] - address
        self.run = room if room < length else length
        return table.host[index] + (address - table.start[index])

    def transfer(self, copies: TransferList) -> int:
        failures = 0
        for index in range(copies.count):
            guest = copies.guest[index]
            host = copies.host[index]
            left = copies.length[index]
            while left:
                place = self.locate(guest, left, copies.to_guest[index] != 0)
                if place == 0:
                    copies.failed[index] = 1
                    failures += 1
                    break
                if copies.to_guest[index]:
                    copy(place, host, self.run)
                else:
                    copy(host, place, self.run)
                guest += self.run
                host += self.run
                left -= self.run
        return failures
