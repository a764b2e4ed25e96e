"""The synchronous IOREQ page: one 32-byte slot per vCPU, shared with Xen.

Source: xen/include/public/hvm/ioreq.h, struct ioreq.
"""

from __future__ import annotations

from enum import IntEnum

SLOT_BYTES = 32
SLOTS_PER_PAGE = 128

ADDRESS = 0  # u64: guest-physical
DATA = 8  # u64: value, zero-extended
COUNT = 16  # u32: always 1 on Arm
SIZE = 20  # u32: bytes, 1, 2, 4 or 8
VP_EPORT = 24  # u32: the port to bind to, valid once the server is enabled; never written by us
FLAGS = 30  # u8: state in bits 0-3, bit 4 data_is_ptr, bit 5 dir (1 read), bit 6 df
TYPE = 31  # u8

STATE_MASK = 0x0F
DIRECTION_READ = 0x20
DATA_IS_POINTER = 0x10


class SlotState(IntEnum):
    NONE = 0
    READY = 1
    INPROCESS = 2
    RESPONSE_READY = 3


class RequestType(IntEnum):
    PIO = 0
    COPY = 1
    PCI_CONFIG = 2
    TIMEOFFSET = 7
    INVALIDATE = 8


def slot_address(page: int, vcpu: int) -> int:
    """Host address of the slot of `vcpu` in the page mapped at `page`."""
    return page + SLOT_BYTES * vcpu
