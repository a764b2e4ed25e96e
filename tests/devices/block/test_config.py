from __future__ import annotations

from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xenvirtio.devices.block.config import CONFIG_BYTES, WRITEBACK_OFFSET, BlockConfig

ZERO = BlockConfig(*[0] * len(fields(BlockConfig)))


@pytest.mark.parametrize(
    ("name", "offset", "width"),
    [
        ("capacity", 0, 8),
        ("size_max", 8, 4),
        ("seg_max", 12, 4),
        ("blk_size", 20, 4),
        ("physical_block_exp", 24, 1),
        ("alignment_offset", 25, 1),
        ("min_io_size", 26, 2),
        ("opt_io_size", 28, 4),
        ("writeback", WRITEBACK_OFFSET, 1),
        ("num_queues", 34, 2),
        ("max_discard_sectors", 36, 4),
        ("max_discard_seg", 40, 4),
        ("discard_sector_alignment", 44, 4),
        ("max_write_zeroes_sectors", 48, 4),
        ("max_write_zeroes_seg", 52, 4),
        ("write_zeroes_may_unmap", 56, 1),
    ],
)
def test_each_field_is_little_endian_at_its_place(name: str, offset: int, width: int) -> None:
    value = (1 << 8 * width) - 2
    encoded = replace(ZERO, **{name: value}).encode()
    assert encoded == bytes(offset) + value.to_bytes(width, "little") + bytes(CONFIG_BYTES - offset - width)


@given(st.lists(st.integers(0, 255), min_size=len(fields(BlockConfig)), max_size=len(fields(BlockConfig))))
def test_parse_undoes_encode(values: list[int]) -> None:
    config = BlockConfig(*values)
    assert BlockConfig.parse(config.encode()) == config
