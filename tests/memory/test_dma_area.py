from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xenvirtio.errors import ResourceError, UsageError
from xenvirtio.memory.buffer import HostBuffer
from xenvirtio.memory.dma_area import ALIGNMENT, DmaArea

BYTES = 16384
BUFFER = HostBuffer(BYTES)  # an area does not keep its window alive


def area_of(buffer: HostBuffer, start: int = 0x1000) -> DmaArea:
    return DmaArea(buffer.address, start, BYTES)


def test_an_address_is_an_offset_into_the_window_and_memory_is_clear() -> None:
    buffer = HostBuffer(BYTES)
    buffer.view[:] = b"\xc2" * buffer.length_bytes
    dma, host = area_of(buffer).allocate(100)
    assert (dma, host) == (0x1000, buffer.address + 0x1000)
    assert bytes(buffer.view[0x1000 : 0x1000 + 128]) == bytes(128)
    assert buffer.view[0xFFF] == buffer.view[0x1000 + 128] == 0xC2


def test_what_was_given_back_is_given_out_again() -> None:
    area = area_of(BUFFER)
    first, _ = area.allocate(BYTES - 0x1000)
    with pytest.raises(ResourceError, match="no 1 bytes left"):
        area.allocate(1)
    area.release(first)
    assert area.allocate(64)[0] == first
    area.clear()
    assert area.free_bytes == BYTES - 0x1000


def test_giving_back_what_was_not_taken_is_a_bug() -> None:
    area = area_of(BUFFER)
    dma, _ = area.allocate(64)
    area.release(dma)
    for address in (dma, 0, 0x1040):
        with pytest.raises(UsageError):
            area.release(address)


def test_an_area_has_room() -> None:
    for start, end in ((64, 64), (128, 64), (-64, 64)):
        with pytest.raises(UsageError):
            DmaArea(0, start, end)


@given(st.lists(st.one_of(st.integers(0, 3000), st.integers(0, 20).map(lambda n: -1 - n)), max_size=60))
def test_pieces_never_overlap_and_nothing_is_lost(steps: list[int]) -> None:
    area = area_of(BUFFER)
    taken: list[tuple[int, int]] = []
    for step in steps:
        if step >= 0:
            try:
                dma, _ = area.allocate(step)
            except ResourceError:
                continue
            taken.append((dma, max(step, 1)))
        elif taken:
            area.release(taken.pop(step % len(taken))[0])
        ordered = sorted(taken)
        assert all(dma % ALIGNMENT == 0 and dma >= 0x1000 and dma + length <= BYTES for dma, length in ordered)
        assert all(a + length <= b for (a, length), (b, _) in pairwise(ordered))
    for dma, _ in taken:
        area.release(dma)
    assert area.free_bytes == BYTES - 0x1000
    assert area.allocate(BYTES - 0x1000)[0] == 0x1000
