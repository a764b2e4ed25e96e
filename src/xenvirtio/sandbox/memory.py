"""DMA memory of a sandbox guest, as its kernel would hand it to a driver: plain addresses or grants."""

from __future__ import annotations

from typing import Protocol

from xenvirtio.ids import GRANT_BIT, PAGE_SIZE, DomId
from xenvirtio.xen.emulated import Domain

BACKEND = DomId(0)


class DmaMemory(Protocol):
    def allocate(self, length_bytes: int) -> tuple[int, int]:
        """Return (DMA address, host address) of fresh zeroed memory, page-aligned."""
        ...


class PlainDma:
    """Guest-physical addresses: the device node has no `iommus`."""

    def __init__(self, domain: Domain) -> None:
        self._domain = domain

    def allocate(self, length_bytes: int) -> tuple[int, int]:
        pages = -(-length_bytes // PAGE_SIZE)
        address = self._domain.memory.allocate_pages(pages) * PAGE_SIZE
        return address, self._domain.memory.host_address(address, pages * PAGE_SIZE)


class GrantedDma:
    """Consecutive grant references in the address, as Linux's grant DMA operations make them."""

    def __init__(self, domain: Domain) -> None:
        self._domain = domain

    def allocate(self, length_bytes: int) -> tuple[int, int]:
        pages = -(-length_bytes // PAGE_SIZE)
        first = self._domain.memory.allocate_pages(pages)
        frames = range(first, first + pages)
        reference = self._domain.grants.allocate(BACKEND, list(frames), readonly=False)  # type: ignore[arg-type]
        host = self._domain.memory.host_address(first * PAGE_SIZE, pages * PAGE_SIZE)
        return GRANT_BIT | reference << 12, host
