"""Split virtqueue layout: sizes, flags and offsets.

Source: VIRTIO 1.4, 2.7 (Split Virtqueues); include/uapi/linux/virtio_ring.h.
"""

from __future__ import annotations

DESCRIPTOR_BYTES = 16
"""struct virtq_desc: addr u64, len u32, flags u16, next u16."""

DESC_F_NEXT = 1
DESC_F_WRITE = 2
DESC_F_INDIRECT = 4

AVAIL_F_NO_INTERRUPT = 1
USED_F_NO_NOTIFY = 1

QUEUE_SIZE_MAX = 32768
"""2.7: the largest queue size of a split virtqueue."""

INDIRECT_MAX = 1024
"""Longest indirect table taken, in descriptors. 2.7.5.3.1 allows the queue size; drivers with small queues are known
to exceed that, and without any bound one chain could make us copy 64 GiB of descriptors."""


def desc_bytes(queue_size: int) -> int:
    """Bytes of the descriptor area."""
    return DESCRIPTOR_BYTES * queue_size


def avail_bytes(queue_size: int) -> int:
    """Bytes of the driver area: flags u16, idx u16, ring[] u16, used_event u16.

    `used_event` counts even without EVENT_IDX: its two bytes are part of the area a driver grants.
    """
    return 6 + 2 * queue_size


def used_bytes(queue_size: int) -> int:
    """Bytes of the device area: flags u16, idx u16, ring[] {id u32, len u32}, avail_event u16."""
    return 6 + 8 * queue_size
