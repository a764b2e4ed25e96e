"""Layouts and limits of Argo, as Xen defines them and the emulated host keeps them.

Source: xen/include/public/argo.h and xen/common/argo.c (4.20).
"""

from __future__ import annotations

import struct
from enum import IntEnum, IntFlag

from xenvirtio.ids import PAGE_SIZE
from xenvirtio.xen.capabilities import ArgoRingState


class ArgoOp(IntEnum):
    REGISTER_RING = 1
    UNREGISTER_RING = 2
    SENDV = 3
    NOTIFY = 4


FLAG_FAIL_EXIST = 1

RING = struct.Struct("<IHHI")
"""aport, partner, pad, length of the ring; `unregister_ring` takes the first three."""
UNREGISTER = struct.Struct("<IHH")
SEND_ADDRESSES = struct.Struct("<IHHIHH")
"""Source and destination, each aport, domid, pad."""
IOV = struct.Struct("<QII")
"""Address, length, pad."""
NOTIFY_HEAD = struct.Struct("<II")
"""Number of entries, pad."""
NOTIFY_ENTRY = struct.Struct("<IHHHHII")
"""aport, domid, pad; flags (out), pad; space required, longest message (out)."""

RING_DATA_OFFSET = 64
RX_OFFSET, TX_OFFSET = 0, 4
HEADER = struct.Struct("<IIHHI")
"""Of a message in a ring: length with this header, source aport, domid, pad; message type."""
SLOT_BYTES = 16
RING_MIN_BYTES, RING_MAX_BYTES = 48, 1 << 24
RINGS_PER_DOMAIN = 128
PENDING_PER_RING = 32
NOTIFY_MAX = 256


class NotifyFlag(IntFlag):
    EXISTS = 1
    SHARED = 2
    EMPTY = 4
    SUFFICIENT = 8
    EMSGSIZE = 16
    EBUSY = 32


def round_to_slots(length_bytes: int) -> int:
    return -(-length_bytes // SLOT_BYTES) * SLOT_BYTES


def ring_pages(length_bytes: int) -> int:
    """How many pages a ring takes, its pointers included."""
    return -(-(round_to_slots(length_bytes) + RING_DATA_OFFSET) // PAGE_SIZE)


def ring_state(flags: int, message_max_bytes: int) -> ArgoRingState:
    return ArgoRingState(
        exists=bool(flags & NotifyFlag.EXISTS),
        is_empty=bool(flags & NotifyFlag.EMPTY),
        has_room=bool(flags & NotifyFlag.SUFFICIENT),
        message_max_bytes=message_max_bytes if flags & NotifyFlag.EXISTS else 0,
    )
