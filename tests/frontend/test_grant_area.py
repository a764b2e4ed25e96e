from __future__ import annotations

import pytest

from xenvirtio.errors import ResourceError
from xenvirtio.frontend.grant_area import BUNDLES_MAX, PAGES_PER_BUNDLE, GrantArea
from xenvirtio.ids import GRANT_BIT, PAGE_SIZE, DomId, GrantRef
from xenvirtio.memory.buffer import HostBuffer
from xenvirtio.xen.capabilities import GrantedPages
from xenvirtio.xen.mapping import OwnedMapping


class Allocator:
    """Grants with the references of `order`, bundle after bundle."""

    def __init__(self, scattered: bool = False) -> None:
        self.scattered = scattered
        self.next = 100
        self.buffers: list[HostBuffer] = []
        self.closed = 0

    def allocate(self, domid: DomId, count: int, *, writable: bool) -> GrantedPages:
        assert writable
        buffer = HostBuffer(count * PAGE_SIZE)
        self.buffers.append(buffer)
        references = [GrantRef(self.next + n) for n in range(count)]
        self.next += count
        if self.scattered:
            references.reverse()
        mapping = OwnedMapping(buffer.address, buffer.length_bytes, self._count)
        return GrantedPages(mapping, references)

    def _count(self) -> None:
        self.closed += 1

    def close(self) -> None:
        self._count()


def test_a_piece_has_consecutive_references_and_addresses() -> None:
    area = GrantArea(Allocator(), DomId(0))
    first, host = area.allocate(3 * PAGE_SIZE)
    second, after = area.allocate(1)
    assert first == GRANT_BIT | 100 << 12
    assert second == GRANT_BIT | 103 << 12
    assert after == host + 3 * PAGE_SIZE


def test_a_piece_larger_than_a_bundle_gets_one_of_its_own() -> None:
    allocator = Allocator()
    area = GrantArea(allocator, DomId(0))
    area.allocate((PAGES_PER_BUNDLE + 5) * PAGE_SIZE)
    assert allocator.buffers[0].length_bytes == (PAGES_PER_BUNDLE + 5) * PAGE_SIZE


def test_scattered_references_serve_single_pages_and_then_end() -> None:
    area = GrantArea(Allocator(scattered=True), DomId(0))
    addresses = {area.allocate(PAGE_SIZE)[0] for _ in range(PAGES_PER_BUNDLE)}
    assert len(addresses) == PAGES_PER_BUNDLE
    with pytest.raises(ResourceError, match="consecutive"):
        area.allocate(2 * PAGE_SIZE)


def test_the_kernels_limit_is_kept() -> None:
    area = GrantArea(Allocator(), DomId(0))
    for _ in range(BUNDLES_MAX * PAGES_PER_BUNDLE):
        area.allocate(PAGE_SIZE)
    with pytest.raises(ResourceError):
        area.allocate(PAGE_SIZE)
    area.clear()
    area.allocate(PAGE_SIZE)


def test_closing_ends_every_grant() -> None:
    allocator = Allocator()
    area = GrantArea(allocator, DomId(0))
    area.allocate(PAGE_SIZE)
    area.close()
    assert allocator.closed == 2
