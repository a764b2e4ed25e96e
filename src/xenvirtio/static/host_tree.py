"""The machine under Xen as its device tree describes it: RAM, reserved memory, GIC and the console's UART.

Source: Devicetree Specification v0.4, 2.3 (reg, ranges), 3.4 (memory), 3.5 (reserved-memory), 3.6 (chosen); Linux
Documentation/devicetree/bindings/interrupt-controller/arm,gic{,-v3}.yaml.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from xenvirtio.errors import ConfigurationError
from xenvirtio.static.host import Host, HostDevice
from xenvirtio.static.span import Span
from xenvirtio.toml_table import QUANTITY_MAX

GIC_V3 = {"arm,gic-v3"}
GIC_V2 = {"arm,gic-400", "arm,cortex-a15-gic", "arm,cortex-a9-gic", "arm,cortex-a7-gic", "arm,pl390", "arm,gic-v2"}
NODES_MAX, DEPTH_MAX = 20_000, 16
"""Beyond what boards have; a tree is a file like any other."""
SPI = 0
SPI_BASE = 32


class Tree(Protocol):
    """A device tree, read by paths. What is not there is None; KeyError: no such node."""

    def children(self, path: str) -> list[str]: ...

    def cells(self, path: str, name: str) -> tuple[int, ...] | None: ...

    def texts(self, path: str, name: str) -> tuple[str, ...] | None: ...


Translate = Callable[[int], int | None]
"""From a bus's addresses to the processor's; None outside of its ranges."""


@dataclass(frozen=True, slots=True)
class _Node:
    path: str
    compatible: frozenset[str]
    spans: tuple[Span, ...]
    """What its `reg` says, in the processor's addresses."""


def host_of_tree(tree: Tree, where: str) -> Host:
    """Return the host; `where` names the tree in errors and findings.

    Raises:
        ConfigurationError: it has no memory or no GIC that Xen knows, or more nodes than any board.
    """
    nodes = list(_nodes(tree, where))
    memory = [span for node in nodes if _is_memory(tree, node) for span in node.spans if span.size_bytes]
    if not memory:
        problem = "the tree says nothing of memory (a boot loader may fill it in)"
        raise ConfigurationError(where, problem, "describe the machine in [host]")
    version, gic = _gic(tree, nodes, where)
    uart, irq, console = _uart(tree, nodes)
    reserved = [node for node in nodes if node.path.startswith("/reserved-memory/")]
    early = (HostDevice(node.path.rpartition("/")[2], span) for node in reserved for span in node.spans)
    return Host(
        where=where,
        memory=tuple(sorted(memory)),
        gic_version=version,
        gic=gic,
        uart=uart,
        uart_irq=irq,
        early=tuple(device for device in early if device.span.size_bytes),
        console=console,
    )


def _nodes(tree: Tree, where: str) -> Iterator[_Node]:
    """Every node below the root whose addresses are the processor's."""
    root = (*_cell_counts(tree, "/"), _identity)
    todo: list[tuple[str, int, int, int, Translate]] = [("/", 0, *root)]
    count = 0
    while todo:
        parent, depth, address_cells, size_cells, translate = todo.pop()
        for name in tree.children(parent):
            count += 1
            if count > NODES_MAX or depth > DEPTH_MAX:
                raise ConfigurationError(where, f"more than {NODES_MAX} nodes, or {DEPTH_MAX} levels of them")
            path = f"{parent.rstrip('/')}/{name}"
            spans = _spans(tree.cells(path, "reg") or (), address_cells, size_cells, translate)
            yield _Node(path, frozenset(tree.texts(path, "compatible") or ()), tuple(spans))
            ranges = tree.cells(path, "ranges")
            if ranges is not None:
                counts = _cell_counts(tree, path)
                inner = _translation(ranges, counts[0], address_cells, counts[1], translate)
                todo.append((path, depth + 1, *counts, inner))


def _cell_counts(tree: Tree, path: str) -> tuple[int, int]:
    address, size = (tree.cells(path, name) for name in ("#address-cells", "#size-cells"))
    return (min(address[0], 3) if address else 2), (min(size[0], 2) if size else 1)


def _identity(address: int) -> int:
    return address


def _number(cells: Sequence[int]) -> int:
    """Of the last two cells: a third one in front is a bus's own matter."""
    number = 0
    for cell in cells[-2:]:
        number = number << 32 | cell
    return number


def _spans(cells: Sequence[int], address_cells: int, size_cells: int, translate: Translate) -> Iterator[Span]:
    step = address_cells + size_cells
    for at in range(0, len(cells) - step + 1, step) if step else ():
        address = translate(_number(cells[at : at + address_cells]))
        size = _number(cells[at + address_cells : at + step]) if size_cells else 0
        if address is not None and address <= QUANTITY_MAX and size <= QUANTITY_MAX:
            yield Span(address, size)


def _translation(
    ranges: Sequence[int], child_cells: int, parent_cells: int, size_cells: int, outer: Translate
) -> Translate:
    """What `ranges` says; an empty one changes nothing."""
    step = child_cells + parent_cells + size_cells
    windows = [
        (
            Span(_number(ranges[at : at + child_cells]), _number(ranges[at + child_cells + parent_cells : at + step])),
            _number(ranges[at + child_cells : at + child_cells + parent_cells]),
        )
        for at in range(0, len(ranges) - step + 1, step or 1)
    ]
    if not windows:
        return outer

    def translate(address: int) -> int | None:
        for window, parent in windows:
            if window.address <= address < window.end:
                return outer(parent + address - window.address)
        return None

    return translate


def _is_memory(tree: Tree, node: _Node) -> bool:
    return node.path.count("/") == 1 and (tree.texts(node.path, "device_type") or ()) == ("memory",)


def _gic(tree: Tree, nodes: Sequence[_Node], where: str) -> tuple[int, tuple[HostDevice, ...]]:
    for node in nodes:
        if node.compatible & GIC_V3:
            regions = tree.cells(node.path, "#redistributor-regions")
            count = regions[0] if regions else 1
            names = ["GIC distributor", *(["GIC redistributors"] * count if count <= len(node.spans) else [])]
        elif node.compatible & GIC_V2:
            names = ["GIC distributor", "GIC CPU interface"]
        else:
            continue
        devices = (HostDevice(name, span) for name, span in zip(names, node.spans, strict=False))
        return (3 if node.compatible & GIC_V3 else 2), tuple(devices)
    raise ConfigurationError(where, "the tree has no GIC that Xen knows", "describe the machine in [host]")


def _uart(tree: Tree, nodes: Sequence[_Node]) -> tuple[HostDevice | None, int | None, str]:
    """The console's UART, its interrupt, and stdout-path as it stands."""
    try:
        said = tree.texts("/chosen", "stdout-path")
        path = said[0].partition(":")[0] if said else ""
        if path and not path.startswith("/"):
            alias = tree.texts("/aliases", path)
            path = alias[0] if alias else ""
    except KeyError:
        return None, None, ""
    console = said[0] if said else ""
    for node in nodes:
        if node.path == path and node.spans:
            interrupts = tree.cells(path, "interrupts") or ()
            irq = SPI_BASE + interrupts[1] if len(interrupts) >= 2 and interrupts[0] == SPI else None
            return HostDevice("UART", node.spans[0]), irq, console
    return None, None, console
