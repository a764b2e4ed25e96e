from __future__ import annotations

import pytest

from xenvirtio.memory.guest_memory import GuestMemory
from xenvirtio.memory.transfer import TransferList

GRANT_BIT = 1 << 63


def entry(copies: TransferList, index: int) -> tuple[int, int, int, bool, bool]:
    return (
        copies.guest[index],
        copies.host[index],
        copies.length[index],
        copies.to_guest[index] != 0,
        copies.has_failed(index),
    )


def test_entries_keep_what_was_added_in_order() -> None:
    copies = TransferList()
    assert copies.add(0x1000, 0x7FFF_0000_1000, 16, False) == 0
    assert copies.add(GRANT_BIT | 0x8000, 0x7FFF_0000_2000, 4096, True) == 1
    assert copies.count == 2
    assert entry(copies, 0) == (0x1000, 0x7FFF_0000_1000, 16, False, False)
    assert entry(copies, 1) == (GRANT_BIT | 0x8000, 0x7FFF_0000_2000, 4096, True, False)


@pytest.mark.parametrize("capacity", [0, 1, 2, 3, 64])
def test_growth_keeps_every_entry_and_every_failure(capacity: int) -> None:
    copies = TransferList(capacity)
    for number in range(200):
        assert copies.add(number, 1000 + number, 2000 + number, number % 3 == 0) == number
        if number % 5 == 0:
            copies.fail(number)
    assert copies.count == 200
    assert copies.capacity >= 200
    for number in range(200):
        expected = (number, 1000 + number, 2000 + number, number % 3 == 0, number % 5 == 0)
        assert entry(copies, number) == expected


def test_a_cleared_list_forgets_failures_as_it_is_filled_again() -> None:
    copies = TransferList(4)
    for _ in range(4):
        copies.fail(copies.add(1, 2, 3, True))
    copies.clear()
    assert copies.count == 0
    for index in range(4):
        copies.add(1, 2, 3, False)
        assert not copies.has_failed(index)
    assert copies.capacity == 4


@pytest.mark.parametrize("value", [0, 2**63, 2**64 - 1])
def test_addresses_use_all_64_bits(value: int) -> None:
    copies = TransferList()
    copies.add(value, 0, 0, False)
    assert copies.guest[0] == value


def test_memory_without_an_implementation_refuses_everything() -> None:
    memory, copies = GuestMemory(), TransferList()
    for number in range(3):
        copies.add(number, 0, 8, False)
    assert memory.transfer(copies) == 3
    assert all(copies.has_failed(index) for index in range(3))
    assert memory.locate(0x1000, 8, False) == 0
    assert memory.run == 0
