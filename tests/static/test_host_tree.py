"""The host as its device tree has it: nested buses, aliases, both GICs, reserved memory, and trees that say nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xenvirtio.errors import ConfigurationError
from xenvirtio.static.description_loader import parse_description
from xenvirtio.static.host import Host, known_host
from xenvirtio.static.host_map import first_module
from xenvirtio.static.host_tree import host_of_tree
from xenvirtio.static.span import Span

Nodes = Mapping[str, Any]
"""A node: its properties (tuples of cells or of texts) and, as mappings, its children."""


class DictTree:
    def __init__(self, root: Nodes) -> None:
        self._root = root

    def _node(self, path: str) -> Nodes:
        node: Any = self._root
        for name in filter(None, path.split("/")):
            node = node[name]
        if not isinstance(node, Mapping):
            raise KeyError(path)
        return node

    def children(self, path: str) -> list[str]:
        return [name for name, value in self._node(path).items() if isinstance(value, Mapping)]

    def cells(self, path: str, name: str) -> tuple[int, ...] | None:
        value = self._node(path).get(name)
        return value if isinstance(value, tuple) and all(isinstance(cell, int) for cell in value) else None

    def texts(self, path: str, name: str) -> tuple[str, ...] | None:
        value = self._node(path).get(name)
        return value if isinstance(value, tuple) and all(isinstance(text, str) for text in value) else None


QEMU: Nodes = {
    "#address-cells": (2,),
    "#size-cells": (2,),
    "chosen": {"stdout-path": ("/pl011@9000000",)},
    "memory@40000000": {"device_type": ("memory",), "reg": (0, 0x4000_0000, 0, 0xC000_0000)},
    "pl011@9000000": {"compatible": ("arm,pl011",), "reg": (0, 0x900_0000, 0, 0x1000), "interrupts": (0, 1, 4)},
    "intc@8000000": {
        "compatible": ("arm,gic-v3",),
        "#redistributor-regions": (1,),
        "reg": (0, 0x800_0000, 0, 0x1_0000, 0, 0x80A_0000, 0, 0xF6_0000),
    },
}

BOARD: Nodes = {
    "#address-cells": (2,),
    "#size-cells": (1,),
    "aliases": {"serial0": ("/soc/bus/serial@1000",)},
    "chosen": {"stdout-path": ("serial0:115200n8",)},
    "memory@0": {"device_type": ("memory",), "reg": (0, 0, 0x8000_0000, 8, 0, 0x8000_0000)},
    "reserved-memory": {
        "#address-cells": (2,),
        "#size-cells": (1,),
        "ranges": (),
        "firmware@2000000": {"reg": (0, 0x200_0000, 0x200_0000)},
        "cma": {"size": (0x100_0000,)},
    },
    "soc": {
        "#address-cells": (1,),
        "#size-cells": (1,),
        "ranges": (0, 0, 0xFE00_0000, 0x100_0000),
        "gic@1000": {"compatible": ("arm,gic-400",), "reg": (0x1000, 0x1000, 0x2000, 0x2000, 0x4000, 0x2000)},
        "bus": {
            "#address-cells": (1,),
            "#size-cells": (1,),
            "ranges": (0, 0x8_0000, 0x1_0000),
            "serial@1000": {"reg": (0x1000, 0x100), "interrupts": (0, 21, 4)},
            "outside@20000": {"reg": (0x2_0000, 0x100)},
        },
    },
}


def test_qemus_tree_says_what_is_known_of_the_platform() -> None:
    found, known = host_of_tree(DictTree(QEMU), "virt.dtb"), known_host("qemu-virt-gicv3", 0xC000_0000)
    for name in ("memory", "gic_version", "gic", "uart", "uart_irq", "console"):
        assert getattr(found, name) == getattr(known, name)


def test_addresses_pass_through_the_ranges_of_their_buses() -> None:
    host = host_of_tree(DictTree(BOARD), "board.dtb")
    assert [str(span) for span in host.memory] == ["0x00000000-0x7fffffff", "0x800000000-0x87fffffff"]
    assert [(device.name, device.span.address) for device in host.gic] == [
        ("GIC distributor", 0xFE00_1000),
        ("GIC CPU interface", 0xFE00_2000),
    ]
    assert host.uart is not None
    assert (host.uart.span, host.uart_irq) == (Span(0xFE08_1000, 0x100), 53)
    assert [(device.name, device.span) for device in host.early] == [("firmware@2000000", Span(0x200_0000, 0x200_0000))]


SYSTEM = '[system]\nname = "s"\nxen = "4.20"\nhost_tree = "board.dtb"\n'
DOMAIN = '[[domain]]\nname = "a"\nmemory = "64MiB"\nkernel = "k"\n'


def test_a_description_asks_for_its_tree_only_where_nothing_else_says_what_the_host_is() -> None:
    asked = []

    def read(name: str) -> Host:
        asked.append(name)
        return host_of_tree(DictTree(BOARD), name)

    description = parse_description(SYSTEM + DOMAIN, read_host=read)
    assert (asked, description.host.gic_version) == (["board.dtb"], 2)
    parse_description(SYSTEM + 'platform = "qemu-virt-gicv3"\n' + DOMAIN, read_host=read)
    assert asked == ["board.dtb"]


def test_modules_go_behind_what_firmware_keeps() -> None:
    """Reserved from 32 to 64 MiB."""
    description = parse_description(SYSTEM + DOMAIN, read_host=lambda name: host_of_tree(DictTree(BOARD), name))
    assert first_module(description) == 64 << 20


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        (
            "memory@40000000",
            "t.dtb: the tree says nothing of memory (a boot loader may fill it in); describe the machine in [host]",
        ),
        ("intc@8000000", "t.dtb: the tree has no GIC that Xen knows; describe the machine in [host]"),
    ],
)
def test_what_a_tree_does_not_say_is_asked_for(missing: str, message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        host_of_tree(DictTree({name: node for name, node in QEMU.items() if name != missing}), "t.dtb")
    assert str(caught.value) == message


def test_a_tree_without_console_is_a_host_all_the_same() -> None:
    host = host_of_tree(DictTree({name: node for name, node in QEMU.items() if name != "chosen"}), "t.dtb")
    assert (host.uart, host.uart_irq, host.console) == (None, None, "")


cells = st.lists(st.integers(0, 0xFFFFFFFF), max_size=9).map(tuple)
texts = st.lists(st.sampled_from(["memory", "arm,gic-v3", "arm,gic-400", "serial0", "/a/b", ""]), max_size=2).map(tuple)
properties = st.sampled_from(
    [
        "#address-cells",
        "#size-cells",
        "reg",
        "ranges",
        "compatible",
        "device_type",
        "interrupts",
        "stdout-path",
        "#redistributor-regions",
        "serial0",
    ]
)
children = st.sampled_from(["a", "b", "memory@0", "chosen", "aliases", "reserved-memory"])
trees = st.recursive(
    st.dictionaries(properties, cells | texts, max_size=5),
    lambda inner: st.builds(
        lambda own, below: {**own, **below},
        st.dictionaries(properties, cells | texts),
        st.dictionaries(children, inner, max_size=4),
    ),
    max_leaves=12,
)


@given(trees)
def test_any_tree_is_a_host_or_one_error(tree: Nodes) -> None:
    try:
        host = host_of_tree(DictTree({**QEMU, **tree}), "t.dtb")
    except ConfigurationError:
        return
    assert all(span.size_bytes for span in host.memory)
    assert host.gic_version in (2, 3)


def test_a_tree_without_end_is_refused() -> None:
    deep: dict[str, Any] = {}
    for _ in range(40):
        deep = {"ranges": (), "n": deep}
    with pytest.raises(ConfigurationError, match="levels"):
        host_of_tree(DictTree({**QEMU, "n": deep}), "t.dtb")
