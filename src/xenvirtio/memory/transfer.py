"""A list of copies between guest memory and ours, carried out in one go.

One grant-copy call for all of a batch is what makes grants affordable, so nobody copies piecemeal: callers fill a
list, `GuestMemory.transfer` runs it, and each entry says for itself whether it worked.
"""

from __future__ import annotations

from array import array


class TransferList:
    """Copies to do: (guest DMA address, host address, length in bytes, direction).

    Reused from batch to batch. `failed[i]` is 1 after a transfer that did not happen; nothing is said about how much
    of a failed entry was copied.
    """

    def __init__(self, capacity: int = 64) -> None:
        self.count = 0
        self.capacity = max(capacity, 1)  # it grows by doubling
        self._allocate(self.capacity)

    def _allocate(self, capacity: int) -> None:
        self.guest = memoryview(array("Q", bytes(8 * capacity)))
        self.host = memoryview(array("Q", bytes(8 * capacity)))
        self.length = memoryview(array("Q", bytes(8 * capacity)))
        self.to_guest = memoryview(array("B", bytes(capacity)))
        self.failed = memoryview(array("B", bytes(capacity)))

    def _grow(self) -> None:
        guest, host, length = self.guest, self.host, self.length
        to_guest, failed = self.to_guest, self.failed
        old = self.capacity
        self.capacity = 2 * old
        self._allocate(self.capacity)
        self.guest[:old] = guest
        self.host[:old] = host
        self.length[:old] = length
        self.to_guest[:old] = to_guest
        self.failed[:old] = failed

    def clear(self) -> None:
        self.count = 0

    def add(self, guest: int, host: int, length: int, to_guest: bool) -> int:
        """Append one copy; return its index, for `has_failed` afterwards."""
        if self.count == self.capacity:
            self._grow()
        index = self.count
        self.guest[index] = guest
        self.host[index] = host
        self.length[index] = length
        self.to_guest[index] = 1 if to_guest else 0
        self.failed[index] = 0
        self.count = index + 1
        return index

    def fail(self, index: int) -> None:
        self.failed[index] = 1

    def has_failed(self, index: int) -> bool:
        return self.failed[index] != 0
