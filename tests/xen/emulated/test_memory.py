from __future__ import annotations

import pytest

from xenvirtio.errors import UsageError
from xenvirtio.ids import PAGE_SIZE, Gfn
from xenvirtio.xen.emulated.memory import RAM_BANKS, GuestMemory

BASE = RAM_BANKS[0][0]


def test_bytes_by_guest_physical_address() -> None:
    memory = GuestMemory(1 << 20)
    memory.write(BASE + 4090, b"over a page boundary")
    assert memory.read(BASE + 4090, 20) == b"over a page boundary"


@pytest.mark.parametrize("address", [0, BASE - 1, BASE + (1 << 20) - 3])
def test_what_is_not_ram(address: int) -> None:
    with pytest.raises(UsageError):
        GuestMemory(1 << 20).read(address, 4)


def test_more_than_three_gigabytes_has_a_second_bank() -> None:
    memory = GuestMemory(4 << 30)
    high = RAM_BANKS[1][0]
    memory.write(high + (1 << 30) - 4, b"last")
    assert memory.offset_of_frame(Gfn(high // PAGE_SIZE)) == 3 << 30
    assert memory.read(high + (1 << 30) - 4, 4) == b"last"
    assert memory.offset_of_frame(Gfn((high + (1 << 30)) // PAGE_SIZE)) is None


def test_pages_are_allocated_once_and_can_be_freed() -> None:
    memory = GuestMemory(4 * PAGE_SIZE)
    first = memory.allocate_pages(3)
    memory.allocate_pages()
    with pytest.raises(OSError, match="no 1 consecutive"):
        memory.allocate_pages()
    memory.free_pages(first, 3)
    assert memory.allocate_pages(3) == first
