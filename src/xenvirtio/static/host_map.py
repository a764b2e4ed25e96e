"""Who claims which part of the host's memory, and where boot modules go.

Xen keeps apart from its own memory: what the boot loader placed, static memory, static shared memory, its static heap.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from xenvirtio.static.description import Description
from xenvirtio.static.span import Span, round_up
from xenvirtio.static.system import System

MODULE_ALIGNMENT = 2 << 20
"""What an arm64 kernel wants, and what ImageBuilder rounds to."""
_LOADER_BYTES = 32 << 20
_MODULES_ROOM = 256 << 20
"""How much room is looked for when nobody says where; `check` sees whether it was enough."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A range of addresses and the place in the description that says so; `what` for people."""

    where: str
    what: str
    span: Span


def first_module(description: Description) -> int:
    """Where boot modules are loaded from: as described, as the platform is known, or 32 MiB into RAM and behind
    what lies there."""
    host = description.host
    if description.modules_from is not None:
        return description.modules_from
    if host.first_module is not None:
        return host.first_module
    address = round_up(min(host.memory).address + _LOADER_BYTES, MODULE_ALIGNMENT)
    for device in sorted(host.early, key=lambda device: device.span):
        if device.span.overlaps(Span(address, _MODULES_ROOM)):
            address = round_up(device.span.end, MODULE_ALIGNMENT)
    return address


def place_modules(description: Description, sizes: Mapping[str, int]) -> dict[str, Span]:
    """Give each file its place, one after the other, in the order of `sizes` (file name -> bytes)."""
    address, found = first_module(description), {}
    for name, size_bytes in sizes.items():
        found[name] = Span(address, size_bytes)
        address = round_up(address + max(size_bytes, 1), MODULE_ALIGNMENT)
    return found


def host_claims(system: System, modules: Mapping[str, Span]) -> list[Claim]:
    """All fixed claims; `modules` as placed, empty while their sizes are not known."""
    description = system.description
    host = description.host
    claims = [
        Claim(f"{host.where} loaded[{number}]", device.name, device.span) for number, device in enumerate(host.early)
    ]
    claims += [
        Claim(f"system static_heap[{number}]", "Xen's heap", span)
        for number, span in enumerate(description.static_heap)
    ]
    for domain in system.domains:
        claims += [
            Claim(f"{domain.where} static_memory[{number}]", "static memory", span)
            for number, span in enumerate(domain.static_memory)
        ]
    claims += [
        Claim(f"{region.where} host", "shared memory", region.host_span)
        for region in system.regions
        if region.host_span
    ]
    claims += [Claim(f"module {name}", "a boot module", span) for name, span in modules.items()]
    return claims
