from __future__ import annotations

import errno
from collections.abc import Sequence

import pytest

from xenvirtio.errors import HypervisorError
from xenvirtio.ids import PAGE_SIZE, DomId, Gfn
from xenvirtio.memory.buffer import HostBuffer
from xenvirtio.memory.foreign import ABSENT_MAX, ADDRESS_LIMIT, CHUNK_BYTES, RETRY_S, ForeignChunks
from xenvirtio.memory.regions import RegionMemory
from xenvirtio.memory.transfer import TransferList
from xenvirtio.xen.capabilities import Mapping

GUEST = DomId(4)
RAM = 0x4000_0000
GRANT_BIT = 1 << 63
PAGES_PER_CHUNK = CHUNK_BYTES // PAGE_SIZE


class FakeMapping:
    def __init__(self, length_bytes: int) -> None:
        self._buffer = HostBuffer(length_bytes)
        self.address = self._buffer.address
        self.length_bytes = length_bytes
        self.closed = False

    def close(self) -> None:
        self.closed = True

    def __enter__(self) -> FakeMapping:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


class FakeForeign:
    """A guest with RAM at `present` frames only."""

    def __init__(self, present: range, *, holes: frozenset[int] = frozenset()) -> None:
        self.present = present
        self.holes = holes
        self.calls: list[int] = []
        self.mappings: list[FakeMapping] = []
        self.refuse: int | None = None

    def map_frames(self, domid: DomId, frames: Sequence[Gfn], *, writable: bool) -> tuple[Mapping, list[int]]:
        assert domid == GUEST
        assert writable
        self.calls.append(frames[0])
        if self.refuse is not None:
            raise HypervisorError("MMAPBATCH_V2", self.refuse, domid=domid)
        mapping = FakeMapping(len(frames) * PAGE_SIZE)
        self.mappings.append(mapping)
        errors = [0 if f in self.present and f not in self.holes else -errno.ENOENT for f in frames]
        return mapping, errors

    def close(self) -> None:
        raise AssertionError("the chunks do not own the capability")


FIRST = RAM // PAGE_SIZE


def chunks_over(foreign: FakeForeign) -> tuple[ForeignChunks, RegionMemory]:
    chunks = ForeignChunks(foreign, GUEST)
    return chunks, RegionMemory(chunks)


def test_a_chunk_is_mapped_when_it_is_first_touched_and_never_again() -> None:
    foreign = FakeForeign(range(FIRST, FIRST + 2 * PAGES_PER_CHUNK))
    _, memory = chunks_over(foreign)
    assert foreign.calls == []
    for offset in (0x1234, 0, CHUNK_BYTES - 1):
        assert memory.locate(RAM + offset, 1, True) == foreign.mappings[0].address + offset
    assert foreign.calls == [FIRST]


def test_a_copy_over_the_border_of_two_chunks_maps_both() -> None:
    foreign = FakeForeign(range(FIRST, FIRST + 2 * PAGES_PER_CHUNK))
    _, memory = chunks_over(foreign)
    ours, copies = HostBuffer(PAGE_SIZE), TransferList()
    copies.add(RAM + CHUNK_BYTES - 8, ours.address, 16, False)
    assert memory.transfer(copies) == 0
    assert foreign.calls == [FIRST, FIRST + PAGES_PER_CHUNK]


def test_holes_in_a_chunk_are_never_touched() -> None:
    foreign = FakeForeign(range(FIRST, FIRST + 100), holes=frozenset({FIRST + 3}))
    _, memory = chunks_over(foreign)
    ours, copies = HostBuffer(2 * PAGE_SIZE), TransferList()
    copies.add(RAM + 2 * PAGE_SIZE, ours.address, PAGE_SIZE, True)
    copies.add(RAM + 3 * PAGE_SIZE, ours.address, 1, True)
    copies.add(RAM + 4 * PAGE_SIZE - 1, ours.address, 2, True)
    copies.add(RAM + 99 * PAGE_SIZE, ours.address, PAGE_SIZE + 1, True)
    assert memory.transfer(copies) == 3
    assert [copies.has_failed(index) for index in range(4)] == [False, True, True, True]
    assert foreign.calls == [FIRST], "a hole is not asked for again"


def test_a_page_that_arrives_later_is_found_but_not_asked_for_all_the_time() -> None:
    foreign = FakeForeign(range(FIRST, FIRST + 100), holes=frozenset({FIRST + 3}))
    now = [0.0]
    chunks = ForeignChunks(foreign, GUEST, clock=lambda: now[0])
    memory = RegionMemory(chunks)
    assert memory.locate(RAM, 1, True) != 0
    foreign.holes = frozenset()
    assert memory.locate(RAM + 3 * PAGE_SIZE, 1, True) == 0
    now[0] = RETRY_S
    assert memory.locate(RAM + 100 * PAGE_SIZE, 1, True) == 0
    assert foreign.mappings[1].closed, "a second look that found nothing new keeps nothing"
    now[0] = 2 * RETRY_S
    assert memory.locate(RAM + 3 * PAGE_SIZE, 1, True) == foreign.mappings[2].address + 3 * PAGE_SIZE
    assert foreign.calls == [FIRST] * 3
    assert not foreign.mappings[0].closed, "another queue may be using it"
    chunks.drop()
    assert all(mapping.closed for mapping in foreign.mappings)


def test_an_absent_chunk_costs_one_call_and_keeps_no_mapping() -> None:
    foreign = FakeForeign(range(0))
    _, memory = chunks_over(foreign)
    for offset in (0, 0x1000, CHUNK_BYTES - 1):
        assert memory.locate(RAM + offset, 1, False) == 0
    assert foreign.calls == [FIRST]
    assert foreign.mappings[0].closed


@pytest.mark.parametrize("address", [ADDRESS_LIMIT, ADDRESS_LIMIT + 1, GRANT_BIT - 1, GRANT_BIT, 2**64 - 1])
def test_impossible_addresses_are_not_asked_for(address: int) -> None:
    foreign = FakeForeign(range(FIRST, FIRST + 1))
    _, memory = chunks_over(foreign)
    assert memory.locate(address, 1, False) == 0
    assert foreign.calls == []


def test_a_refused_mapping_is_a_failed_copy() -> None:
    foreign = FakeForeign(range(FIRST, FIRST + 1))
    foreign.refuse = errno.EPERM
    _, memory = chunks_over(foreign)
    ours, copies = HostBuffer(1), TransferList()
    copies.add(RAM, ours.address, 1, False)
    assert memory.transfer(copies) == 1


def test_what_is_remembered_about_bad_addresses_is_bounded() -> None:
    foreign = FakeForeign(range(0))
    foreign.refuse = errno.ENOENT
    chunks, _ = chunks_over(foreign)
    for number in range(ABSENT_MAX + 10):
        assert not chunks.fault(number * CHUNK_BYTES)
    assert len(chunks._asked_s) == ABSENT_MAX


def test_dropping_unmaps_everything_and_the_next_touch_maps_anew() -> None:
    foreign = FakeForeign(range(FIRST, FIRST + 2 * PAGES_PER_CHUNK))
    chunks, memory = chunks_over(foreign)
    memory.locate(RAM, 1, False)
    memory.locate(RAM + CHUNK_BYTES, 1, False)
    memory.locate(0, 1, False)
    chunks.drop()
    assert all(mapping.closed for mapping in foreign.mappings)
    assert chunks.table.count == 0
    foreign.present = range(FIRST + 100)  # the guest's memory map has changed
    assert memory.locate(0, 1, False)
    assert memory.locate(RAM, 1, False)
    chunks.drop()
    chunks.drop()
