"""Memory of a frontend in user space that its backend reaches by grants: what gntalloc gives, handed out in pieces.

A DMA address carries a grant reference, and a piece over several pages takes consecutive references. The kernel hands
out references one by one, mostly in ascending order, but does not promise it; so pages are taken in bundles, and pieces
are cut from the runs of consecutive references in them.
"""

from __future__ import annotations

from xenvirtio.errors import ResourceError
from xenvirtio.ids import GRANT_BIT, PAGE_SIZE, DomId
from xenvirtio.memory.raw import fill
from xenvirtio.xen.capabilities import GrantAllocator, Mapping

PAGES_PER_BUNDLE = 64
BUNDLES_MAX = 14
"""With 64 pages each just below the 1024 that Linux allows for all of a domain's processes (gntalloc.limit)."""


class GrantArea:
    """Pages granted to `domid`, writable. Owns `allocator`."""

    def __init__(self, allocator: GrantAllocator, domid: DomId) -> None:
        self._allocator = allocator
        self._domid = domid
        self._bundles: list[Mapping] = []
        self._runs: list[tuple[int, int, int]] = []
        """(first reference, host address, pages), all that was granted."""
        self._free: list[tuple[int, int, int]] = []

    def allocate(self, length_bytes: int) -> tuple[int, int]:
        """Return (DMA address, host address) of zeroed pages, contiguous in both.

        Raises:
            ResourceError: the references are used up, or too scattered.
        """
        pages = -(-max(length_bytes, 1) // PAGE_SIZE)
        while True:
            for index, (reference, address, room) in enumerate(self._free):
                if room >= pages:
                    self._free[index] = (reference + pages, address + pages * PAGE_SIZE, room - pages)
                    fill(address, 0, pages * PAGE_SIZE)
                    return GRANT_BIT | reference << 12, address
            self._grow(pages)

    def _grow(self, pages: int) -> None:
        if len(self._bundles) >= BUNDLES_MAX:
            raise ResourceError(f"no {pages} consecutive grant references left; make requests smaller")
        count = max(pages, PAGES_PER_BUNDLE)
        granted = self._allocator.allocate(self._domid, count, writable=True)
        self._bundles.append(granted.mapping)
        first = 0
        for n in range(1, count + 1):
            if n == count or granted.references[n] != granted.references[n - 1] + 1:
                run = (granted.references[first], granted.mapping.address + first * PAGE_SIZE, n - first)
                self._runs.append(run)
                self._free.append(run)
                first = n

    def clear(self) -> None:
        """Take everything back; the pages stay granted, for the next session."""
        self._free = list(self._runs)

    def close(self) -> None:
        """End all grants."""
        for mapping in self._bundles:
            mapping.close()
        self._bundles.clear()
        self._runs.clear()
        self._free.clear()
        self._allocator.close()
