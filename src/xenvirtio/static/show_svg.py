"""A system as a picture: the address maps side by side, shared memory joined across, channels and devices below.

Addresses grow downwards. Heights grow with the logarithm of sizes: a page and a gigabyte are both to be read. Colours
follow what the reader's system prefers, light or dark.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from xml.sax.saxutils import escape

from xenvirtio.static.show_map import Block, Column, Kind, columns, device_text, title
from xenvirtio.static.span import size_text
from xenvirtio.static.system import System

COLUMN_WIDTH, COLUMN_GAP, MARGIN = 244, 76, 28
HEAD_HEIGHT, BLOCK_MIN, BLOCK_MAX, BLOCK_GAP = 52, 36, 84, 7
ROW_HEIGHT, SECTION_GAP = 46, 46
CHARACTER = 0.62
"""Width of a character of a monospaced font, as a part of its size, with some room."""
HUES = 8

_LIGHT = {
    ".paper": "fill:#ffffff",
    ".ink": "fill:#1f2328",
    ".faint": "fill:#59636e",
    ".halo": "stroke:#ffffff",
    ".life": "stroke:#d1d9e0",
    ".line": "stroke:#59636e",
    ".tip": "fill:#59636e",
    ".xen": "fill:#e7eaee;stroke:#9aa4af",
    ".ram": "fill:#dbe9f9;stroke:#7aa5d8",
    ".registers": "fill:#f3e4f7;stroke:#b07cc6",
    ".free": "fill:#ffffff;stroke:#c3ccd5",
}
_DARK = {
    ".paper": "fill:#0d1117",
    ".ink": "fill:#f0f6fc",
    ".faint": "fill:#9aa5b1",
    ".halo": "stroke:#0d1117",
    ".life": "stroke:#30363d",
    ".line": "stroke:#9aa5b1",
    ".tip": "fill:#9aa5b1",
    ".xen": "fill:#21262d;stroke:#59636e",
    ".ram": "fill:#15314f;stroke:#4478b0",
    ".registers": "fill:#3a2244;stroke:#9a62b2",
    ".free": "fill:#0d1117;stroke:#3d444d",
}
_LIGHT_HUES = ("#ffd9a0", "#b9e6c0", "#f6c1c7", "#cfd3fa", "#f4e58f", "#b6e5e8", "#e8c9a9", "#dcc4ee")
_LIGHT_EDGES = ("#c77d12", "#3d9150", "#c4505f", "#6670d0", "#a58b0a", "#2a8f97", "#946334", "#8a55b8")
_DARK_HUES = ("#5c3d10", "#1d4a29", "#5c2630", "#30376f", "#4e430c", "#164a4e", "#4b331b", "#41285a")
_DARK_EDGES = ("#e09a3a", "#58b56c", "#e27583", "#8b94ea", "#cbb02c", "#46b4bd", "#c08a55", "#b184dd")


@dataclass(frozen=True, slots=True)
class _Placed:
    """A block where it is drawn."""

    block: Block
    x: float
    y: float
    height: float


def as_svg(system: System) -> str:
    """Return the document."""
    maps = columns(system)
    hues = {region.id: number % HUES for number, region in enumerate(system.regions)}
    lanes = {column.name: MARGIN + number * (COLUMN_WIDTH + COLUMN_GAP) for number, column in enumerate(maps)}
    top = MARGIN + 34
    placed = [_place(column, lanes[column.name], top + HEAD_HEIGHT) for column in maps]
    bottom = max((item.y + item.height for column in placed for item in column), default=float(top))
    width = MARGIN + len(maps) * (COLUMN_WIDTH + COLUMN_GAP)
    parts = [_text(MARGIN, MARGIN + 12, title(system), 16, "ink", bold=True)]
    parts += _ribbons(system, placed, hues)
    for column, items in zip(maps, placed, strict=True):
        parts += _head(column, lanes[column.name], top)
        parts += [part for item in items for part in _block(item, hues)]
    bottom = _rows(parts, system, lanes, bottom + SECTION_GAP)
    height = math.ceil(bottom + MARGIN)
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
            ' font-family="ui-monospace, SFMono-Regular, Menlo, Consolas, DejaVu Sans Mono, monospace">',
            f"<title>{escape(title(system))}</title>",
            _style(),
            f'<rect class="paper" width="{width}" height="{height}"/>',
            *parts,
            "</svg>",
            "",
        ]
    )


def _place(column: Column, x: float, y: float) -> list[_Placed]:
    found: list[_Placed] = []
    for block in column.blocks:
        height = _height(block.size_bytes)
        found.append(_Placed(block, x, y, height))
        y += height + BLOCK_GAP
    return found


def _height(size_bytes: int) -> float:
    """From `BLOCK_MIN` for a page to `BLOCK_MAX` for 4 GiB and more."""
    share = min(max(math.log2(max(size_bytes, 4096) / 4096) / 20, 0), 1)
    return round(BLOCK_MIN + share * share * (BLOCK_MAX - BLOCK_MIN), 1)


def _ribbons(system: System, placed: Sequence[Sequence[_Placed]], hues: dict[str, int]) -> list[str]:
    """Bands between the blocks of a region, from each column to the next one that has it."""
    parts = []
    for region in system.regions:
        stops = [item for column in placed for item in column if item.block.region == region.id]
        for one, other in pairwise(stops):
            x0, x1 = one.x + COLUMN_WIDTH, other.x
            middle = (x0 + x1) / 2
            a, b, c, d = one.y, one.y + one.height, other.y, other.y + other.height
            parts.append(
                f'<path class="ribbon r{hues[region.id]}" d="M{x0} {a} C{middle} {a} {middle} {c} {x1} {c}'
                f' L{x1} {d} C{middle} {d} {middle} {b} {x0} {b} Z"/>'
            )
    return parts


def _head(column: Column, x: float, y: float) -> list[str]:
    return [
        _text(x, y + 16, column.title, 15, "ink", bold=True, room=COLUMN_WIDTH),
        _text(x, y + 36, column.facts, 11, "faint", room=COLUMN_WIDTH + COLUMN_GAP - 8),
    ]


def _block(item: _Placed, hues: dict[str, int]) -> list[str]:
    block = item.block
    kind = f"r{hues[block.region]}" if block.region in hues else block.kind.value
    dashed = ' stroke-dasharray="4 3"' if block.address is None or block.kind is Kind.FREE else ""
    size = _short(block.size_bytes) if block.size_bytes else ""
    place = f"{block.address:#010x}" if block.address is not None and not block.size_bytes else block.place
    room = COLUMN_WIDTH - 20 - len(size) * 12 * CHARACTER
    whole = escape(f"{block.label} {size} {place}")
    return [
        f'<g><title>{whole}</title><rect class="{kind}" x="{item.x}" y="{item.y}" width="{COLUMN_WIDTH}"'
        f' height="{item.height}" rx="4"{dashed}/>',
        _text(item.x + 9, item.y + 15, block.label, 12, "ink", bold=block.region is not None, room=room),
        _text(item.x + COLUMN_WIDTH - 9, item.y + 15, size, 12, "ink", anchor="end"),
        _text(item.x + 9, item.y + 29, place, 10.5, "faint") + "</g>",
    ]


@dataclass(frozen=True, slots=True)
class _Row:
    """A line between the lanes of two domains, with a text above and one below it."""

    one: str
    other: str
    above: str
    below: str = ""
    ports: tuple[int, int] | None = None
    """Of an event channel. A device has none, and an arrow to `one`, its frontend."""


def _rows(parts: list[str], system: System, lanes: dict[str | None, int], y: float) -> float:
    """Draw channels and devices, a row each; return where they end."""
    channels = [
        _Row(one.domain, other.domain, channel.name, ports=(one.port, other.port))
        for channel in system.channels
        for one, other in [channel.ends]
    ]
    devices = [_Row(d.frontend, d.backend, f"{d.name} ({d.type.name.lower()})", device_text(d)) for d in system.devices]
    middle = {domain.name: lanes[domain.name] + COLUMN_WIDTH / 2 for domain in system.domains}
    bottom = y - SECTION_GAP
    for heading, rows in (("event channels", channels), ("devices", devices)):
        if rows:
            bottom = y + 30 + len(rows) * ROW_HEIGHT
            parts.append(_text(MARGIN, y + 4, heading, 15, "ink", bold=True))
            for name, x in middle.items():
                parts.append(_text(x, y + 4, name, 12, "ink", bold=True, anchor="middle", room=COLUMN_WIDTH))
                parts.append(f'<path class="life" d="M{x:g} {y + 14:g} V{bottom:g}"/>')
            for number, row in enumerate(rows):
                parts += _row(row, middle[row.one], middle[row.other], y + 48 + number * ROW_HEIGHT)
            y = bottom + SECTION_GAP
    return bottom


def _row(row: _Row, x0: float, x1: float, y: float) -> list[str]:
    parts = [
        f'<path class="line" d="M{x0:g} {y:g} H{x1:g}"/>',
        f'<circle class="tip" cx="{x1:g}" cy="{y:g}" r="4"/>',
    ]
    toward = 1 if x1 > x0 else -1
    if row.ports is None:
        parts.append(f'<path class="tip" d="M{x0:g} {y:g} l{10 * toward} -5 v10 Z"/>')
    else:
        parts.append(f'<circle class="tip" cx="{x0:g}" cy="{y:g}" r="4"/>')
        for x, port, side in ((x0, row.ports[0], -toward), (x1, row.ports[1], toward)):
            anchor = "end" if side < 0 else "start"
            parts.append(_text(x + 9 * side, y + 4, str(port), 12, "ink", anchor=anchor, halo=True))
    room, centre = abs(x1 - x0) - 16, (x0 + x1) / 2
    parts.append(_text(centre, y - 7, row.above, 12, "ink", anchor="middle", room=room, halo=True))
    if row.below:
        parts.append(_text(centre, y + 15, row.below, 10.5, "faint", anchor="middle", room=room, halo=True))
    return parts


def _short(size_bytes: int) -> str:
    """As `size_text` where that is short, else rounded."""
    exact = size_text(size_bytes)
    if len(exact) <= 7:
        return exact
    unit, name = next(((1 << n, name) for n, name in ((30, "GiB"), (20, "MiB"), (10, "KiB")) if size_bytes >= 1 << n))
    return f"{size_bytes / unit:.1f}{name}"


def _text(
    x: float,
    y: float,
    text: str,
    size: float,
    kind: str,
    *,
    bold: bool = False,
    anchor: str = "start",
    room: float | None = None,
    halo: bool = False,
) -> str:
    shown = text if room is None else _fit(text, size, room)
    weight = ' font-weight="600"' if bold else ""
    place = "" if anchor == "start" else f' text-anchor="{anchor}"'
    behind = " halo" if halo else ""
    return (
        f'<text class="{kind}{behind}" x="{x:g}" y="{y:g}" font-size="{size:g}"{weight}{place}>{escape(shown)}</text>'
    )


def _fit(text: str, size: float, room: float) -> str:
    most = max(int(room / (size * CHARACTER)), 1)
    return text if len(text) <= most else text[: most - 1] + "…"


def _style() -> str:
    common = (
        ".ribbon{opacity:.45;stroke:none}.line{fill:none;stroke-width:1.6}.life{fill:none;stroke-width:1.2}"
        ".halo{stroke-width:4;stroke-linejoin:round;paint-order:stroke}"
    )
    light, dark = _rules(_LIGHT, _LIGHT_HUES, _LIGHT_EDGES), _rules(_DARK, _DARK_HUES, _DARK_EDGES)
    return f"<style>{light}{common}@media (prefers-color-scheme:dark){{{dark}.ribbon{{stroke:none}}}}</style>"


def _rules(kinds: dict[str, str], hues: Sequence[str], edges: Sequence[str]) -> str:
    shared = {f".r{n}": f"fill:{hue};stroke:{edge}" for n, (hue, edge) in enumerate(zip(hues, edges, strict=True))}
    return "".join(f"{selector}{{{rule}}}" for selector, rule in {**kinds, **shared}.items())
