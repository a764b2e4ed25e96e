from __future__ import annotations

import ctypes

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.memory.guarded import PROT_READ, GuardedMemory
from xenvirtio.errors import UsageError
from xenvirtio.memory.buffer import HostBuffer
from xenvirtio.memory.regions import RegionMemory, RegionSource, RegionTable
from xenvirtio.memory.transfer import TransferList

GRANT_BIT = 1 << 63
TOP = 2**64 - 1


def memory_of(*regions: tuple[int, int, int, bool]) -> RegionMemory:
    return RegionMemory(RegionSource(RegionTable(regions)))


@pytest.mark.parametrize(
    ("address", "index"),
    [
        (0, -1),
        (0xFFF, -1),
        (0x1000, 0),
        (0x1FFF, 0),
        (0x2000, 1),  # adjacent regions: the border belongs to the upper one
        (0x2FFF, 1),
        (0x3000, -1),
        (0x8FFF, -1),
        (0x9000, 2),
        (0x9000 + 15, 2),
        (0x9000 + 16, -1),
        (TOP, -1),
    ],
)
def test_find_at_every_border(address: int, index: int) -> None:
    table = RegionTable([(0x9000, 16, 3, True), (0x1000, 0x1000, 1, True), (0x2000, 0x1000, 2, True)])
    assert table.find(address) == index


def test_an_empty_table_holds_nothing() -> None:
    assert RegionTable().find(0) == -1


def test_regions_are_sorted_by_guest_address() -> None:
    table = RegionTable([(0x9000, 16, 3, False), (0x1000, 0x1000, 1, True)])
    rows = list(zip(table.start, table.end, table.host, table.writable, strict=True))
    assert rows == [(0x1000, 0x2000, 1, 1), (0x9000, 0x9010, 3, 0)]


@pytest.mark.parametrize("second", [(0x1FFF, 1, 0, True), (0x1000, 0x1000, 0, True), (0x0, 0x1001, 0, True)])
def test_overlapping_regions_are_our_own_mistake(second: tuple[int, int, int, bool]) -> None:
    with pytest.raises(UsageError, match="overlap"):
        RegionTable([(0x1000, 0x1000, 0, True), second])


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 9)), max_size=12), st.integers(0, 500))
def test_find_agrees_with_a_linear_search(gaps: list[tuple[int, int]], address: int) -> None:
    regions = []
    start = 0
    for gap, length in gaps:
        start += gap
        regions.append((start, length, 1, True))
        start += length
    expected = next((i for i, (begin, length, _, _) in enumerate(regions) if begin <= address < begin + length), -1)
    assert RegionTable(reversed(regions)).find(address) == expected


@pytest.mark.parametrize(
    ("address", "length", "place", "run"),
    [
        (0x1000, 16, 0x10000, 16),
        (0x1FF0, 16, 0x10FF0, 16),
        (0x1FF0, 17, 0x10FF0, 16),  # runs over the end of the region
        (0x1FFF, TOP, 0x10FFF, 1),
        (0x2000, 1, 0, 0),
        (0xFFF, 2, 0, 0),
        (0x1000, 0, 0x10000, 0),
    ],
)
def test_locate_gives_host_address_and_contiguous_run(address: int, length: int, place: int, run: int) -> None:
    memory = memory_of((0x1000, 0x1000, 0x10000, True))
    assert memory.locate(address, length, True) == place
    assert memory.run == run


def test_a_failed_locate_leaves_no_run_behind() -> None:
    memory = memory_of((0x1000, 0x1000, 0x10000, False))
    assert memory.locate(0x1000, 8, False)
    assert memory.locate(0x1000, 8, True) == 0  # read-only
    assert memory.run == 0


def test_grant_addresses_are_never_regions() -> None:
    """Even where a region would (wrongly) lie up there."""
    memory = memory_of((GRANT_BIT, 0x1000, 0x10000, True))
    assert memory.locate(GRANT_BIT, 8, False) == 0


def test_a_copy_goes_over_adjacent_regions_piece_by_piece() -> None:
    first, second, ours = HostBuffer(4096), HostBuffer(4096), HostBuffer(4096)
    memory = memory_of((0x1000, 0x1000, first.address, True), (0x2000, 0x1000, second.address, True))
    copies = TransferList()
    ours.view[:8] = b"ABCDEFGH"
    copies.add(0x1FFD, ours.address, 8, True)
    copies.add(0x1FFB, ours.address + 100, 8, False)
    assert memory.transfer(copies) == 0
    assert bytes(first.view[-3:]) + bytes(second.view[:5]) == b"ABCDEFGH"
    assert bytes(ours.view[100:108]) == b"\0\0ABCDEF"


@pytest.mark.parametrize(
    ("guest", "length"),
    [
        (0x0FFF, 1),
        (0x0FFF, 2),
        (0x2FFF, 2),  # begins inside, ends outside
        (0x1000, 0x2001),
        (0x1000, 0xFFFF_FFFF),
        (TOP, 1),
        (TOP, 2),  # would wrap around
        (GRANT_BIT - 1, 2),
        (GRANT_BIT | 0x1000, 1),
    ],
)
@pytest.mark.parametrize("to_guest", [False, True])
def test_a_bad_address_fails_its_entry_only(guest: int, length: int, to_guest: bool) -> None:
    backing = GuardedMemory(0x2000)
    ours = GuardedMemory(0x3000, at_end=False)
    memory = memory_of((0x1000, 0x2000, backing.address, True))
    copies = TransferList()
    copies.add(0x1000, ours.address, 4, False)
    copies.add(guest, ours.address, length, to_guest)
    copies.add(0x2FFF, ours.address, 1, True)
    assert memory.transfer(copies) == 1
    assert [copies.has_failed(index) for index in range(3)] == [False, True, False]


def test_a_region_ending_at_the_top_of_the_plain_addresses_does_not_leak_into_grants() -> None:
    backing = GuardedMemory(0x1000)
    memory = memory_of((GRANT_BIT - 0x1000, 0x1000, backing.address, True))
    ours = HostBuffer(0x2000)
    copies = TransferList()
    copies.add(GRANT_BIT - 0x1000, ours.address, 0x1000, True)
    copies.add(GRANT_BIT - 1, ours.address, 2, True)
    assert memory.transfer(copies) == 1
    assert copies.has_failed(1)


def test_read_only_regions_refuse_writes_and_serve_reads() -> None:
    backing = GuardedMemory(0x1000)
    backing.write(0, b"fixed")
    backing.protect(PROT_READ)
    memory = memory_of((0x1000, 0x1000, backing.address, False))
    ours = HostBuffer(16)
    copies = TransferList()
    copies.add(0x1000, ours.address, 5, True)
    copies.add(0x1000, ours.address, 5, False)
    assert memory.transfer(copies) == 1
    assert copies.has_failed(0)
    assert bytes(ours.view[:5]) == b"fixed"


def test_a_copy_of_nothing_succeeds_anywhere() -> None:
    copies = TransferList()
    copies.add(TOP, 0, 0, True)
    assert memory_of().transfer(copies) == 0


class OnDemand(RegionSource):
    """Maps the page asked for, from page 1 to page 3."""

    def __init__(self) -> None:
        self.table = RegionTable()
        self.faults: list[int] = []
        self.pages: dict[int, HostBuffer] = {}

    def fault(self, address: int) -> bool:
        self.faults.append(address)
        page = address // 4096
        if page not in (1, 2, 3):
            return False
        self.pages[page] = HostBuffer(4096)
        self.table = RegionTable((number * 4096, 4096, b.address, True) for number, b in self.pages.items())
        return True


def test_missing_regions_are_faulted_in_once_and_only_where_touched() -> None:
    source = OnDemand()
    memory = RegionMemory(source)
    ours = HostBuffer(8192)
    ours.view[:] = b"\x5a" * 8192
    copies = TransferList()
    copies.add(0x1800, ours.address, 0x1000, True)
    copies.add(0x1800, ours.address, 0x1000, True)
    assert memory.transfer(copies) == 0
    assert source.faults == [0x1800, 0x2000]
    assert ctypes.string_at(source.pages[2].address, 0x801) == b"\x5a" * 0x800 + b"\0"


def test_a_fault_that_cannot_be_served_fails_the_entry() -> None:
    source = OnDemand()
    memory = RegionMemory(source)
    ours = HostBuffer(8192)
    copies = TransferList()
    copies.add(0x3800, ours.address, 0x1000, False)
    assert memory.transfer(copies) == 1
    assert source.faults == [0x3800, 0x4000]


def test_a_swapped_table_is_seen_at_the_next_lookup() -> None:
    source = RegionSource(RegionTable([(0x1000, 0x1000, 0x10000, True)]))
    memory = RegionMemory(source)
    assert memory.locate(0x1000, 1, False) == 0x10000
    source.table = RegionTable([(0x1000, 0x1000, 0x20000, True)])
    assert memory.locate(0x1000, 1, False) == 0x20000
    source.table = RegionTable()
    assert memory.locate(0x1000, 1, False) == 0
