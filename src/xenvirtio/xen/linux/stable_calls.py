"""Hypercalls that Xen keeps as they are: the same on every release.

Source: xen/include/public/{version.h,memory.h,hvm/hvm_op.h,grant_table.h}.
"""

from __future__ import annotations

import ctypes
import errno
from typing import ClassVar

from xenvirtio.ids import DomId, Gfn
from xenvirtio.xen.capabilities import XenVersion
from xenvirtio.xen.hints import hypervisor_error
from xenvirtio.xen.linux.hypercall import Hypercalls, Number

XENVER_VERSION = 0

HVMOP_SET_PARAM = 0
HVMOP_GET_PARAM = 1

XENMEM_POPULATE_PHYSMAP = 6

RESOURCE_GRANT_TABLE = 1
GRANT_TABLE_SHARED = 0

GTF_PERMIT_ACCESS = 1


class HvmParamArgument(ctypes.Structure):
    _fields_: ClassVar = [
        ("domid", ctypes.c_uint16),
        ("pad", ctypes.c_uint16),
        ("index", ctypes.c_uint32),
        ("value", ctypes.c_uint64),
    ]


class MemoryReservation(ctypes.Structure):
    _fields_: ClassVar = [
        ("extent_start", ctypes.c_uint64),
        ("nr_extents", ctypes.c_uint64),
        ("extent_order", ctypes.c_uint32),
        ("mem_flags", ctypes.c_uint32),
        ("domid", ctypes.c_uint16),
    ]


class GrantEntryV1(ctypes.Structure):
    _fields_: ClassVar = [("flags", ctypes.c_uint16), ("domid", ctypes.c_uint16), ("frame", ctypes.c_uint32)]


class _Frame(ctypes.Structure):
    _fields_: ClassVar = [("number", ctypes.c_uint64)]


def xen_version(calls: Hypercalls) -> XenVersion:
    packed = calls.call("xen_version", Number.XEN_VERSION, XENVER_VERSION, 0)
    return XenVersion(packed >> 16, packed & 0xFFFF)


def hvm_param(calls: Hypercalls, domid: DomId, index: int) -> int:
    with calls.arguments() as memory:
        argument = memory.put(HvmParamArgument(domid=domid, index=index))
        calls.call("hvm_param", Number.HVM_OP, HVMOP_GET_PARAM, ctypes.addressof(argument), domid=domid)
        return int(argument.value)


def set_hvm_param(calls: Hypercalls, domid: DomId, index: int, value: int) -> None:
    with calls.arguments() as memory:
        argument = memory.put(HvmParamArgument(domid=domid, index=index, value=value))
        calls.call("set_hvm_param", Number.HVM_OP, HVMOP_SET_PARAM, ctypes.addressof(argument), domid=domid)


def populate_page(calls: Hypercalls, domid: DomId, gfn: Gfn) -> None:
    """Give a domain one page; the hypercall answers how many it gave, so none is ENOMEM."""
    with calls.arguments() as memory:
        frame = memory.put(_Frame(gfn))
        reservation = memory.put(MemoryReservation(ctypes.addressof(frame), 1, 0, 0, domid))
        address = ctypes.addressof(reservation)
        given = calls.call("populate_page", Number.MEMORY_OP, XENMEM_POPULATE_PHYSMAP, address, domid=domid)
    if given != 1:
        raise hypervisor_error("populate_page", errno.ENOMEM, domid)
