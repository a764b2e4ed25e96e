"""The configuration space of a block device.

Source: VIRTIO 1.4, 5.2.4, struct virtio_blk_config up to `unused1`; what follows there belongs to features that are
not offered (secure erase, zoned).
"""

from __future__ import annotations

import struct
from dataclasses import astuple, dataclass

_LAYOUT = struct.Struct("<QII4xIBBHIBxHIIIIIB3x")

CONFIG_BYTES = _LAYOUT.size
WRITEBACK_OFFSET = 32
"""The only byte that a driver may write."""


@dataclass(frozen=True, slots=True)
class BlockConfig:
    """Field names are the standard's; geometry and padding are zeros."""

    capacity: int
    size_max: int
    seg_max: int
    blk_size: int
    physical_block_exp: int
    alignment_offset: int
    min_io_size: int
    opt_io_size: int
    writeback: int
    num_queues: int
    max_discard_sectors: int
    max_discard_seg: int
    discard_sector_alignment: int
    max_write_zeroes_sectors: int
    max_write_zeroes_seg: int
    write_zeroes_may_unmap: int

    def encode(self) -> bytes:
        return _LAYOUT.pack(*astuple(self))

    @classmethod
    def parse(cls, data: bytes) -> BlockConfig:
        """Read what a device shows; `data` is at least CONFIG_BYTES long."""
        return cls(*_LAYOUT.unpack_from(data))
