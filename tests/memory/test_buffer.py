from __future__ import annotations

import ctypes
import mmap

import pytest

from xenvirtio.memory.buffer import HostBuffer


@pytest.mark.parametrize(
    ("asked", "given"), [(0, 1), (1, 1), (mmap.PAGESIZE, 1), (mmap.PAGESIZE + 1, 2), (5 * mmap.PAGESIZE, 5)]
)
def test_length_is_whole_pages(asked: int, given: int) -> None:
    assert HostBuffer(asked).length_bytes == given * mmap.PAGESIZE


def test_lies_on_a_page_and_is_zeroed() -> None:
    buffer = HostBuffer(3 * mmap.PAGESIZE)
    assert buffer.address % mmap.PAGESIZE == 0
    assert ctypes.string_at(buffer.address, buffer.length_bytes) == bytes(buffer.length_bytes)


def test_view_and_address_show_the_same_bytes() -> None:
    buffer = HostBuffer(100)
    buffer.view[7:12] = b"hello"
    assert ctypes.string_at(buffer.address + 7, 5) == b"hello"
    ctypes.memmove(buffer.address + buffer.length_bytes - 3, b"end", 3)
    assert bytes(buffer.view[-3:]) == b"end"


def test_buffers_do_not_share_memory() -> None:
    first, second = HostBuffer(1), HostBuffer(1)
    first.view[:] = b"\xff" * first.length_bytes
    assert bytes(second.view) == bytes(second.length_bytes)
