"""What stands on the wire between a block driver and its device: numbers and sizes.

Source: VIRTIO 1.4, 5.2 (Block Device).
"""

from __future__ import annotations

SECTOR_BYTES = 512
"""5.2.6: the unit of every sector number and of `capacity`, whatever `blk_size` says."""

F_SIZE_MAX = 1 << 1
F_SEG_MAX = 1 << 2
F_RO = 1 << 5
F_BLK_SIZE = 1 << 6
F_FLUSH = 1 << 9
F_TOPOLOGY = 1 << 10
F_CONFIG_WCE = 1 << 11
F_MQ = 1 << 12
F_DISCARD = 1 << 13
F_WRITE_ZEROES = 1 << 14

T_IN = 0
T_OUT = 1
T_FLUSH = 4
T_GET_ID = 8
T_DISCARD = 11
T_WRITE_ZEROES = 13

S_OK = 0
S_IOERR = 1
S_UNSUPP = 2

HEADER_BYTES = 16
"""struct virtio_blk_req before its data: type le32, reserved le32, sector le64. After the data: status u8."""

RANGE_BYTES = 16
"""struct virtio_blk_discard_write_zeroes: sector le64, num_sectors le32, flags le32."""

RANGE_F_UNMAP = 1

ID_BYTES = 20
"""5.2.6: the device ID string, NUL-padded; without a NUL when all 20 are used."""

MAX_RANGES = 64
"""Ranges in one discard or write-zeroes request; bounds the copy and the work of one request."""

MAX_DISCARD_SECTORS = (1 << 30) // SECTOR_BYTES
"""Per range. Punching a hole is a metadata operation, so this may be large."""

MAX_WRITE_ZEROES_SECTORS = (32 << 20) // SECTOR_BYTES
"""Per range. Where the host cannot zero a range by itself the zeros are written out, and a queue that is to stop
waits for the request it is serving."""
