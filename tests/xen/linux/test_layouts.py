"""Layouts and ioctl numbers against the headers of Linux and Xen, compiled; and against the table we work from."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path

import pytest

from xenvirtio.xen.linux import dm_op, evtchn, gntalloc, gntdev, privcmd

Measure = Callable[[str, list[str]], list[int]]

NUMBERS = {
    privcmd.DM_OP: ("privcmd", "IOCTL_PRIVCMD_DM_OP", 0x00105005),
    privcmd.MMAPBATCH_V2: ("privcmd", "IOCTL_PRIVCMD_MMAPBATCH_V2", 0x00205004),
    privcmd.RESTRICT: ("privcmd", "IOCTL_PRIVCMD_RESTRICT", 0x00025006),
    privcmd.MMAP_RESOURCE: ("privcmd", "IOCTL_PRIVCMD_MMAP_RESOURCE", 0x00205007),
    evtchn.BIND_VIRQ: ("evtchn", "IOCTL_EVTCHN_BIND_VIRQ", 0x00044500),
    evtchn.BIND_INTERDOMAIN: ("evtchn", "IOCTL_EVTCHN_BIND_INTERDOMAIN", 0x00084501),
    evtchn.BIND_UNBOUND_PORT: ("evtchn", "IOCTL_EVTCHN_BIND_UNBOUND_PORT", 0x00044502),
    evtchn.UNBIND: ("evtchn", "IOCTL_EVTCHN_UNBIND", 0x00044503),
    evtchn.NOTIFY: ("evtchn", "IOCTL_EVTCHN_NOTIFY", 0x00044504),
    evtchn.RESTRICT_DOMID: ("evtchn", "IOCTL_EVTCHN_RESTRICT_DOMID", 0x00024506),
    gntdev.MAP_GRANT_REF: ("gntdev", "IOCTL_GNTDEV_MAP_GRANT_REF", 0x00184700),
    gntdev.UNMAP_GRANT_REF: ("gntdev", "IOCTL_GNTDEV_UNMAP_GRANT_REF", 0x00104701),
    gntdev.GRANT_COPY: ("gntdev", "IOCTL_GNTDEV_GRANT_COPY", 0x00104708),
    gntalloc.ALLOC_GREF: ("gntalloc", "IOCTL_GNTALLOC_ALLOC_GREF", 0x00184705),
    gntalloc.DEALLOC_GREF: ("gntalloc", "IOCTL_GNTALLOC_DEALLOC_GREF", 0x00104706),
}

Layout = tuple[type[ctypes.Structure], str, list[tuple[str, str]]]

LINUX_LAYOUTS: dict[str, list[Layout]] = {
    "privcmd": [
        (privcmd.MmapBatchV2, "struct privcmd_mmapbatch_v2", [(n, n) for n in ("num", "dom", "addr", "arr", "err")]),
        (privcmd.DmOpBuffer, "struct privcmd_dm_op_buf", [("uptr", "uptr"), ("size", "size")]),
        (privcmd.DmOpCall, "struct privcmd_dm_op", [("dom", "dom"), ("num", "num"), ("ubufs", "ubufs")]),
        (
            privcmd.MmapResource,
            "struct privcmd_mmap_resource",
            [(n, n) for n in ("dom", "type", "id", "idx", "num", "addr")],
        ),
    ],
    "evtchn": [
        (
            evtchn.BindInterdomain,
            "struct ioctl_evtchn_bind_interdomain",
            [("remote_domain", "remote_domain"), ("remote_port", "remote_port")],
        ),
        (evtchn.PortArgument, "struct ioctl_evtchn_bind_unbound_port", [("value", "remote_domain")]),
        (evtchn.PortArgument, "struct ioctl_evtchn_bind_virq", [("value", "virq")]),
        (evtchn.PortArgument, "struct ioctl_evtchn_unbind", [("value", "port")]),
        (evtchn.PortArgument, "struct ioctl_evtchn_notify", [("value", "port")]),
        (evtchn.RestrictDomid, "struct ioctl_evtchn_restrict_domid", [("domid", "domid")]),
    ],
    "gntdev": [
        (gntdev.GrantReference, "struct ioctl_gntdev_grant_ref", [("domid", "domid"), ("ref", "ref")]),
        (gntdev.UnmapGrantRef, "struct ioctl_gntdev_unmap_grant_ref", [("index", "index"), ("count", "count")]),
        (gntdev.GrantCopy, "struct ioctl_gntdev_grant_copy", [("count", "count"), ("segments", "segments")]),
    ],
    "gntalloc": [
        (gntalloc.DeallocGref, "struct ioctl_gntalloc_dealloc_gref", [("index", "index"), ("count", "count")]),
    ],
}

# The first C layouts end in an array of one; ours stop where the array begins.
HEADS: list[tuple[str, type[ctypes.Structure], str, list[str], str]] = [
    ("gntdev", gntdev.MapGrantRef, "struct ioctl_gntdev_map_grant_ref", ["count", "index"], "refs"),
    (
        "gntalloc",
        gntalloc.AllocGref,
        "struct ioctl_gntalloc_alloc_gref",
        ["domid", "flags", "count", "index"],
        "gref_ids",
    ),
]

XEN_LAYOUTS: list[Layout] = [
    (dm_op.CreateIoreqServer, "struct xen_dm_op_create_ioreq_server", [("handle_bufioreq",) * 2, ("id",) * 2]),
    (
        dm_op.IoreqServerRange,
        "struct xen_dm_op_ioreq_server_range",
        [(n, n) for n in ("id", "pad", "type", "start", "end")],
    ),
    (dm_op.SetIoreqServerState, "struct xen_dm_op_set_ioreq_server_state", [("id",) * 2, ("enabled",) * 2]),
    (dm_op.DestroyIoreqServer, "struct xen_dm_op_destroy_ioreq_server", [("id",) * 2]),
    (dm_op.SetIrqLevel, "struct xen_dm_op_set_irq_level", [("irq",) * 2, ("level",) * 2]),
    (dm_op.NrVcpus, "struct xen_dm_op_nr_vcpus", [("vcpus",) * 2]),
    (dm_op.DmOp, "struct xen_dm_op", [("op",) * 2, ("pad",) * 2, ("u",) * 2]),
]

XEN_NUMBERS = {
    dm_op.Op.CREATE_IOREQ_SERVER: "XEN_DMOP_create_ioreq_server",
    dm_op.Op.MAP_IO_RANGE: "XEN_DMOP_map_io_range_to_ioreq_server",
    dm_op.Op.UNMAP_IO_RANGE: "XEN_DMOP_unmap_io_range_from_ioreq_server",
    dm_op.Op.SET_IOREQ_SERVER_STATE: "XEN_DMOP_set_ioreq_server_state",
    dm_op.Op.DESTROY_IOREQ_SERVER: "XEN_DMOP_destroy_ioreq_server",
    dm_op.Op.SET_IRQ_LEVEL: "XEN_DMOP_set_irq_level",
    dm_op.Op.NR_VCPUS: "XEN_DMOP_nr_vcpus",
}


def ours(layout: Layout) -> list[int]:
    structure, _, fields = layout
    return [ctypes.sizeof(structure), *(getattr(structure, field).offset for field, _ in fields)]


def theirs(layout: Layout) -> list[str]:
    _, name, fields = layout
    return [f"sizeof({name})", *(f"offsetof({name}, {field})" for _, field in fields)]


@pytest.fixture
def linux(tmp_path: Path) -> str:
    """Linux's uapi headers lean on one kernel header; these are the types they take from it."""
    shim = tmp_path / "xen" / "interface"
    shim.mkdir(parents=True)
    (shim / "xen.h").write_text(
        "#include <stdint.h>\ntypedef uint16_t domid_t; typedef uint64_t xen_pfn_t; typedef uint32_t grant_ref_t;\n"
    )
    return "#define __user\n#include <linux/types.h>\n#include <linux/ioctl.h>\n#include <xen/interface/xen.h>\n"


@pytest.mark.parametrize("header", ["privcmd", "evtchn", "gntdev", "gntalloc"])
def test_linux_layouts_and_numbers(measure: Measure, linux: str, header: str) -> None:
    layouts = LINUX_LAYOUTS[header]
    expected = [value for layout in layouts for value in ours(layout)]
    expressions = [expression for layout in layouts for expression in theirs(layout)]
    for where, head, name, fields, array in HEADS:
        if where == header:
            expected += [ctypes.sizeof(head), *(getattr(head, field).offset for field in fields)]
            expressions += [f"offsetof({name}, {field})" for field in (array, *fields)]
    for number, (where, name, _) in NUMBERS.items():
        if where == header:
            expected.append(number)
            expressions.append(name)
    assert measure(f"{linux}#include <xen/{header}.h>", expressions) == expected


def test_xen_layouts_and_numbers(measure: Measure) -> None:
    expected = [value for layout in XEN_LAYOUTS for value in ours(layout)] + [int(op) for op in XEN_NUMBERS]
    expressions = [expression for layout in XEN_LAYOUTS for expression in theirs(layout)]
    preamble = "#include <stdint.h>\n#define __XEN_TOOLS__ 1\n#include <xen/xen.h>\n#include <xen/hvm/dm_op.h>"
    assert measure(preamble, expressions + list(XEN_NUMBERS.values())) == expected


def test_numbers_of_the_table() -> None:
    assert [number for number, _ in NUMBERS.items()] == [expected for _, _, expected in NUMBERS.values()]


def test_irqfd_which_older_headers_lack() -> None:
    size = ctypes.sizeof(privcmd.IrqFd)
    assert 0x40000000 | size << 16 | ord("P") << 8 | 8 == privcmd.IRQFD
    offsets = [getattr(privcmd.IrqFd, name).offset for name in ("dm_op", "size", "fd", "flags", "dom", "pad")]
    assert (size, offsets) == (24, [0, 8, 12, 16, 20, 22])


def test_set_irq_level_bytes() -> None:
    assert bytes(dm_op.set_irq_level(33, 1)) == bytes.fromhex("13000000 00000000 21000000 01000000") + bytes(16)
