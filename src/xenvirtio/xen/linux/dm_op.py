"""Layouts of the device-model operations.

Source: xen/include/public/hvm/dm_op.h (4.20), struct xen_dm_op and its members. Every pad must be zero.
"""

from __future__ import annotations

import ctypes
from enum import IntEnum
from typing import ClassVar


class Op(IntEnum):
    CREATE_IOREQ_SERVER = 1
    MAP_IO_RANGE = 3
    UNMAP_IO_RANGE = 4
    SET_IOREQ_SERVER_STATE = 5
    DESTROY_IOREQ_SERVER = 6
    SET_IRQ_LEVEL = 19
    NR_VCPUS = 20


IO_RANGE_MEMORY = 1


class CreateIoreqServer(ctypes.Structure):
    _fields_: ClassVar = [
        ("handle_bufioreq", ctypes.c_uint8),
        ("pad", ctypes.c_uint8 * 3),
        ("id", ctypes.c_uint16),  # out
    ]


class IoreqServerRange(ctypes.Structure):
    _fields_: ClassVar = [
        ("id", ctypes.c_uint16),
        ("pad", ctypes.c_uint16),
        ("type", ctypes.c_uint32),
        ("start", ctypes.c_uint64),
        ("end", ctypes.c_uint64),  # inclusive
    ]


class SetIoreqServerState(ctypes.Structure):
    _fields_: ClassVar = [("id", ctypes.c_uint16), ("enabled", ctypes.c_uint8), ("pad", ctypes.c_uint8)]


class DestroyIoreqServer(ctypes.Structure):
    _fields_: ClassVar = [("id", ctypes.c_uint16), ("pad", ctypes.c_uint16)]


class SetIrqLevel(ctypes.Structure):
    _fields_: ClassVar = [("irq", ctypes.c_uint32), ("level", ctypes.c_uint8), ("pad", ctypes.c_uint8 * 3)]


class NrVcpus(ctypes.Structure):
    _fields_: ClassVar = [("vcpus", ctypes.c_uint32)]  # out


class _Arguments(ctypes.Union):
    _fields_: ClassVar = [
        ("create_ioreq_server", CreateIoreqServer),
        ("io_range", IoreqServerRange),
        ("set_ioreq_server_state", SetIoreqServerState),
        ("destroy_ioreq_server", DestroyIoreqServer),
        ("set_irq_level", SetIrqLevel),
        ("nr_vcpus", NrVcpus),
    ]


class DmOp(ctypes.Structure):
    """`struct xen_dm_op`, 32 bytes."""

    _fields_: ClassVar = [("op", ctypes.c_uint32), ("pad", ctypes.c_uint32), ("u", _Arguments)]


def set_irq_level(irq: int, level: int) -> DmOp:
    request = DmOp(op=Op.SET_IRQ_LEVEL)
    request.u.set_irq_level.irq = irq
    request.u.set_irq_level.level = level
    return request
