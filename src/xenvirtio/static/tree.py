"""A device tree in memory, and as the source that dtc compiles.

    Node("passthrough", {"compatible": texts("simple-bus"), "ranges": EMPTY}, [Node("virtio@2000000", ...)])

Whatever a text holds, the source has it as a string literal; names and labels that dtc would not take are refused.
Source: the Devicetree Specification v0.4, 2.2 and 6.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from xenvirtio.errors import UsageError

_NODE_NAME = re.compile(r"[A-Za-z0-9,._+-]+(@[A-Za-z0-9,._+-]+)?", re.ASCII)
_PROPERTY_NAME = re.compile(r"[A-Za-z0-9,._+?#-]+", re.ASCII)
_LABEL = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)


@dataclass(frozen=True, slots=True)
class Reference:
    """The phandle of the node with that label; dtc chooses the number."""

    label: str


@dataclass(frozen=True, slots=True)
class Cells:
    """Numbers of 32 bits."""

    values: tuple[int | Reference, ...]


@dataclass(frozen=True, slots=True)
class Texts:
    """Strings, each ended by a zero byte."""

    values: tuple[str, ...]


Value = Cells | Texts
EMPTY = Cells(())
"""A property that only is there."""


def cells(*values: int | Reference) -> Cells:
    return Cells(values)


def wide(*values: int) -> Cells:
    """Numbers of 64 bits, in two cells each."""
    return Cells(tuple(half for value in values for half in (value >> 32, value & 0xFFFFFFFF)))


def texts(*values: str) -> Texts:
    return Texts(values)


@dataclass(slots=True)
class Node:
    """A node. `label` makes it something to refer to."""

    name: str
    properties: Mapping[str, Value] = field(default_factory=dict)
    children: Sequence[Node] = ()
    label: str = ""

    def child(self, name: str) -> Node:
        """Raises KeyError when there is none of that name."""
        for node in self.children:
            if node.name == name:
                return node
        raise KeyError(name)


TWO_CELLS: Mapping[str, Value] = {"#address-cells": cells(2), "#size-cells": cells(2)}


def source_of(root: Node) -> str:
    """A whole source file; the root's own name is not used.

    Raises:
        UsageError: a name, a label or a number that no tree can have.
    """
    return "/dts-v1/;\n\n" + overlay_of(root)


def overlay_of(root: Node) -> str:
    """Source to append to that of another tree, whose labels it may refer to."""
    return "\n".join(["/ {", *_body(root, 1), "};"]) + "\n"


def with_chosen(host: str, chosen: Node) -> str:
    """The source of a host tree with its /chosen replaced.

    `host` is source as dtc writes it. The old node is deleted by what is appended: dtc merges the two.
    """
    replacement = ["/ {", "\t/delete-node/ chosen;", "};", "", "/ {", *_lines(chosen, 1), "};"]
    return host.rstrip("\n") + "\n\n" + "\n".join(replacement) + "\n"


def _lines(node: Node, depth: int) -> list[str]:
    indent = "\t" * depth
    label = f"{_checked(_LABEL, node.label)}: " if node.label else ""
    return [f"{indent}{label}{_checked(_NODE_NAME, node.name)} {{", *_body(node, depth + 1), f"{indent}}};"]


def _body(node: Node, depth: int) -> list[str]:
    indent = "\t" * depth
    lines = []
    for name, value in node.properties.items():
        lines.append(f"{indent}{_checked(_PROPERTY_NAME, name)}{_value(value)};")
    for child in node.children:
        lines += ["", *_lines(child, depth)] if lines else _lines(child, depth)
    return lines


def _value(value: Value) -> str:
    if isinstance(value, Texts):
        return " = " + ", ".join(quoted(text) for text in value.values)
    if not value.values:
        return ""
    return " = <" + " ".join(_cell(number) for number in value.values) + ">"


def _cell(value: int | Reference) -> str:
    if isinstance(value, Reference):
        return f"&{_checked(_LABEL, value.label)}"
    if not 0 <= value < 1 << 32:
        raise UsageError(f"{value:#x} does not fit a cell")
    return f"{value:#x}"


def quoted(text: str) -> str:
    """A string literal: what is not plain ASCII, and what means something in a literal, as escapes."""
    escaped = []
    for byte in text.encode():
        if byte == 0:
            raise UsageError("a zero byte ends a string in a tree")
        plain = 0x20 <= byte < 0x7F and byte not in b'"\\'
        # Octal has a fixed length; \x would go on into hexadecimal digits that follow.
        escaped.append(chr(byte) if plain else f"\\{byte:03o}")
    return '"' + "".join(escaped) + '"'


def _checked(pattern: re.Pattern[str], name: str) -> str:
    if not pattern.fullmatch(name):
        raise UsageError(f"{name!r} is no name in a device tree")
    return name
