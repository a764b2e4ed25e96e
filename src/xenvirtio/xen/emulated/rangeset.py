"""Sets of integers kept as ranges, both ends inclusive.

Source: xen/common/rangeset.c: neighbours merge, removing the middle splits, a full set answers ENOMEM.
"""

from __future__ import annotations

import errno
from bisect import bisect_left, bisect_right
from collections.abc import Iterator

from xenvirtio.xen.emulated.refusal import Refusal


class RangeSet:
    """Not thread safe; whoever owns it holds a lock."""

    def __init__(self, limit: int | None = None) -> None:
        self._limit = limit
        self._starts: list[int] = []
        self._ends: list[int] = []

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(zip(self._starts, self._ends, strict=True))

    def __len__(self) -> int:
        """How many ranges, not how many integers."""
        return len(self._starts)

    def overlaps(self, start: int, end: int) -> bool:
        index = bisect_left(self._ends, start)
        return index < len(self._starts) and self._starts[index] <= end

    def contains(self, start: int, end: int) -> bool:
        index = bisect_right(self._starts, start) - 1
        return index >= 0 and end <= self._ends[index]

    def add(self, start: int, end: int) -> None:
        """Add a range; what it touches becomes one with it."""
        first = bisect_left(self._ends, start - 1)
        last = bisect_right(self._starts, end + 1)
        if first == last:
            self._need_room()
        else:
            start, end = min(start, self._starts[first]), max(end, self._ends[last - 1])
        self._starts[first:last] = [start]
        self._ends[first:last] = [end]

    def remove(self, start: int, end: int) -> None:
        """Remove whatever of the range is there."""
        first = bisect_left(self._ends, start)
        last = bisect_right(self._starts, end)
        if first >= last:
            return
        left = (self._starts[first], start - 1)
        right = (end + 1, self._ends[last - 1])
        rest = [(low, high) for low, high in (left, right) if low <= high]
        if len(rest) > last - first:
            self._need_room()
        self._starts[first:last] = [low for low, _ in rest]
        self._ends[first:last] = [high for _, high in rest]

    def take_run(self, length: int) -> int | None:
        """Remove the first run of `length` integers and return where it starts; None when there is none."""
        for start, end in self:
            if end - start + 1 >= length:
                self.remove(start, start + length - 1)
                return start
        return None

    def _need_room(self) -> None:
        if self._limit is not None and len(self._starts) >= self._limit:
            raise Refusal(errno.ENOMEM, f"{self._limit} ranges already")
