"""Memory that a driver in user space hands out to its device: a window that both ends see, cut into pieces.

The DMA address of a byte is its offset in the window.
"""

from __future__ import annotations

from xenvirtio.errors import ResourceError, UsageError
from xenvirtio.memory.raw import fill

ALIGNMENT = 64
"""A cache line: two buffers never share one, and every part of a queue is aligned well enough."""


class DmaArea:
    """Offsets `start` to `end` of the window whose offset 0 lies at host address `base`. First fit, for one thread."""

    def __init__(self, base: int, start: int, end: int) -> None:
        start = -(-start // ALIGNMENT) * ALIGNMENT
        if not 0 <= start < end:
            raise UsageError(f"a DMA area from {start:#x} to {end:#x}")
        self._base = base
        self._bounds = (start, end)
        self._free = [(start, end)]  # sorted, apart from each other
        self._taken: dict[int, int] = {}

    def allocate(self, length_bytes: int) -> tuple[int, int]:
        """Return (DMA address, host address) of zeroed memory, contiguous in both.

        Raises:
            ResourceError: no piece of that length is left.
        """
        length = -(-max(length_bytes, 1) // ALIGNMENT) * ALIGNMENT
        for index, (start, end) in enumerate(self._free):
            if end - start >= length:
                rest = [(start + length, end)] if end - start > length else []
                self._free[index : index + 1] = rest
                self._taken[start] = length
                fill(self._base + start, 0, length)
                return start, self._base + start
        raise ResourceError(
            f"no {length_bytes} bytes left in the DMA area of {self._bounds[1] - self._bounds[0]} bytes; "
            "make the shared region larger, or requests and queues smaller"
        )

    def release(self, dma_address: int) -> None:
        """Take a piece back by the address that `allocate` returned."""
        length = self._taken.pop(dma_address, None)
        if length is None:
            raise UsageError(f"nothing was allocated at {dma_address:#x}")
        merged: list[tuple[int, int]] = []
        for start, end in sorted([*self._free, (dma_address, dma_address + length)]):
            if merged and merged[-1][1] == start:
                merged[-1] = (merged[-1][0], end)
            else:
                merged.append((start, end))
        self._free = merged

    def clear(self) -> None:
        """Take everything back: the session is over, and no device holds any of it."""
        self._taken.clear()
        self._free = [self._bounds]

    @property
    def free_bytes(self) -> int:
        return sum(end - start for start, end in self._free)
