"""Drawings show every domain, region, channel and device, and nothing in them lies over something else."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest

from xenvirtio.static.description_loader import load_description
from xenvirtio.static.resolve import resolve
from xenvirtio.static.show_map import columns
from xenvirtio.static.show_svg import as_svg
from xenvirtio.static.show_text import PLAIN, as_text
from xenvirtio.static.system import System

EXAMPLES = Path(__file__).parents[2] / "examples" / "static"
PICTURE = Path(__file__).parents[2] / "docs" / "static-map.svg"
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(params=["lab", "pair", "three-domains"])
def system(request: pytest.FixtureRequest) -> System:
    return resolve(load_description(EXAMPLES / f"{request.param}.toml"))


def picture() -> str:
    """What docs/static.md shows."""
    return as_svg(resolve(load_description(EXAMPLES / "three-domains.toml")))


def test_the_documents_picture_is_of_today() -> None:
    assert PICTURE.read_text() == picture(), "run tools/static_document.py"


def names(system: System) -> set[str]:
    return {
        *(domain.name for domain in system.domains),
        *(region.id for region in system.regions),
        *(channel.name for channel in system.channels),
        *(device.name for device in system.devices),
    }


def test_the_text_has_every_name_and_fits(system: System) -> None:
    text = as_text(system, 120)
    assert all(name in text for name in names(system))
    assert max(len(line) for line in text.splitlines()) <= 120
    assert text.translate(PLAIN).isascii()


def test_a_region_is_joined_across() -> None:
    system = resolve(load_description(EXAMPLES / "three-domains.toml"))
    lines = [line.rstrip() for line in as_text(system, 120).splitlines()]
    at = lines.index("shared memory")
    assert lines[at + 1 : at + 4] == [
        "                  host           panel          storage        sensor",
        "  samples 1MiB    0xb2000000 ━━━ 0x58000000 ━━━━━━━━━━━━━━━━━━ 0x50000000",
        "  data-disk 1MiB  Xen's heap ━━━ 0x50000000 ━━━ 0x50000000",
    ]
    assert "  sensor 10 ●━━━━● 20 panel   samples" in lines
    narrow = as_text(system, 40)
    assert "samples 1MiB: host 0xb2000000 ━ sensor 0x50000000 ━ panel 0x58000000" in narrow


def test_the_host_column_accounts_for_all_memory(system: System) -> None:
    host = columns(system)[0]
    anywhere = sum(block.size_bytes for block in host.blocks if block.address is None)
    placed = sum(b.size_bytes for b in host.blocks if b.address is not None and (b.region or b.label.startswith("RAM")))
    total = sum(bank.size_bytes for bank in system.description.host.memory)
    assert 0 <= total - anywhere - placed < 1 << 20


def test_blocks_of_the_picture_do_not_overlap_and_texts_stay_within(system: System) -> None:
    root = ElementTree.fromstring(as_svg(system))
    width, height = float(root.get("width", 0)), float(root.get("height", 0))
    rows: dict[str, list[tuple[float, float]]] = {}
    blocks = [rect for group in root.iter(f"{SVG}g") for rect in group.iter(f"{SVG}rect")]
    for rect in blocks:
        top = float(rect.get("y", 0))
        rows.setdefault(rect.get("x", ""), []).append((top, top + float(rect.get("height", 0))))
    assert len(rows) == len(system.domains) + 1
    for spans in rows.values():
        assert all(before[1] < after[0] for before, after in zip(sorted(spans), sorted(spans)[1:], strict=False))
    for text in root.iter(f"{SVG}text"):
        long = len(text.text or "") * float(text.get("font-size", 0)) * 0.61
        left = float(text.get("x", 0)) - {"end": long, "middle": long / 2}.get(text.get("text-anchor", ""), 0)
        assert left >= 0, text.text
        assert left + long <= width, text.text
        assert 0 < float(text.get("y", 0)) <= height


def test_the_picture_has_a_band_between_neighbours_of_a_region() -> None:
    system = resolve(load_description(EXAMPLES / "three-domains.toml"))
    root = ElementTree.fromstring(as_svg(system))
    ribbons = [path for path in root.iter(f"{SVG}path") if "ribbon" in path.get("class", "")]
    assert len(ribbons) == sum(len(region.guests) for region in system.regions)


def test_the_picture_has_colours_for_light_and_dark(system: System) -> None:
    assert "prefers-color-scheme:dark" in as_svg(system)
