"""A system drawn for a terminal: each address map as a list, and what joins the domains as lines across."""

from __future__ import annotations

from collections.abc import Sequence

from xenvirtio.static.show_map import Block, Column, columns, device_text, title
from xenvirtio.static.span import size_text
from xenvirtio.static.system import System

PLAIN = str.maketrans({"━": "-", "●": "o", "◀": "<", "┃": "|", "─": "-"})
"""For a terminal without box drawing."""


def as_text(system: System, width: int) -> str:
    """Return the drawing, lines of `width` characters where the names allow it."""
    maps = columns(system)
    lines = [title(system)]
    for column in maps:
        lines += ["", f"{column.title}  ({column.facts})", *_blocks(column.blocks)]
    if system.regions:
        lines += ["", "shared memory", *_regions(system, maps, width)]
    if system.channels:
        lines += ["", "event channels", *_channels(system)]
    if system.devices:
        lines += ["", "devices", *_devices(system)]
    return "\n".join(lines)


def _blocks(blocks: Sequence[Block]) -> list[str]:
    places = max((len(block.place) for block in blocks), default=0)
    lines = []
    for block in blocks:
        mark = "━" if block.region else " "
        size = size_text(block.size_bytes) if block.size_bytes else ""
        place = f"{block.address:#010x}" if block.address is not None and not block.size_bytes else block.place
        lines.append(f"  {place:<{places}}  {size:>8} {mark} {block.label}")
    return lines


def _regions(system: System, maps: Sequence[Column], width: int) -> list[str]:
    """A line for each region, with its address under the name of each domain; without the room, a list."""
    heads = [f"{region.id} {size_text(region.size_bytes)}" for region in system.regions]
    left = max(len(head) for head in heads)
    shared = [c for c in maps if c.name is None or system.regions_of(c.name)]
    wide = [max(len(column.title), 12) + 3 for column in shared]
    if 4 + left + sum(wide) > width:
        return [f"  {head}: {_ends(system, number)}" for number, head in enumerate(heads)]
    lines = [" " * (4 + left) + "".join(f"{c.title:<{w}}" for c, w in zip(shared, wide, strict=True)).rstrip()]
    for head, region in zip(heads, system.regions, strict=True):
        cells = []
        for column in shared:
            address = region.host if column.name is None else region.guests.get(column.name)
            heap = "Xen's heap" if column.name is None else None
            cells.append(heap if address is None else f"{address:#010x}")
        lines.append(f"  {head:<{left}} {_joined(cells, wide)}".rstrip())
    return lines


def _joined(cells: Sequence[str | None], rooms: Sequence[int]) -> str:
    """The cells, each in its room, and a line from the first one to the last."""
    last = max(number for number, cell in enumerate(cells) if cell)
    line = "━" * sum(rooms[:last])
    at = 0
    for cell, room in zip(cells, rooms, strict=True):
        if cell:
            line = f"{line[:at]} {cell} {line[at + len(cell) + 2 :]}"
        at += room
    return line


def _ends(system: System, number: int) -> str:
    region = system.regions[number]
    host = "Xen's heap" if region.host is None else f"host {region.host:#010x}"
    return " ━ ".join([host, *(f"{name} {address:#010x}" for name, address in region.guests.items())])


def _channels(system: System) -> list[str]:
    rows = []
    for channel in system.channels:
        one, other = channel.ends
        rows.append((f"{one.domain} {one.port}", f"{other.port} {other.domain}", channel.name))
    first, second = (max(len(row[n]) for row in rows) for n in (0, 1))
    return [f"  {one:>{first}} ●━━━━● {other:<{second}}  {name}" for one, other, name in rows]


def _devices(system: System) -> list[str]:
    rows = [(d.frontend, d.backend, f"{d.name} ({d.type.name.lower()}): {device_text(d)}") for d in system.devices]
    first, second = (max(len(row[n]) for row in rows) for n in (0, 1))
    return [f"  {front:>{first}} ◀━━━━ {back:<{second}}  {what}" for front, back, what in rows]
