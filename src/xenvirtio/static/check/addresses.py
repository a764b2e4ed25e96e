"""Addresses: what overlaps in each domain's map and on the host, what lies outside of memory, what is not aligned."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from xenvirtio.ids import PAGE_SIZE
from xenvirtio.static.check.finding import Finding, error, warning
from xenvirtio.static.description import Domain
from xenvirtio.static.guest_map import VIRTIO_SLOT_BYTES, ram, xen_windows
from xenvirtio.static.host_map import Claim, host_claims
from xenvirtio.static.plan import Transport
from xenvirtio.static.span import Span
from xenvirtio.static.system import System

HEAP_ALIGNMENT = 64 << 10
"""xen,static-heap (docs/misc/arm/device-tree/booting.txt)."""
GUEST_END = 1 << 40
"""End of a guest's second bank of RAM. Some processors translate more than 40 bits for guests, all for Xen so many."""

SHARED = "shared memory"
XENS = "Xen's "
"""Begins the place of what is not in the description."""


def check_guest_maps(system: System) -> Iterator[Finding]:
    for domain in system.domains:
        claims = guest_claims(system, domain)
        for claim in claims:
            if claim.span.end > GUEST_END:
                yield warning(
                    "guest-address",
                    claim.where,
                    "Xen's address space for guests",
                    f"{claim.span} ends above {GUEST_END - 1:#x}, which not every processor reaches; choose a lower"
                    " address",
                )
        for one, other in overlapping(claims):
            # in a direct-mapped domain RAM and regions lie as on the host, and are found there
            if not (domain.direct_map and {one.what, other.what} <= {"RAM", SHARED}):
                yield error("guest-overlap", one.where, other.where, _overlap(one, other, f" in {domain.name}"))


def guest_claims(system: System, domain: Domain) -> list[Claim]:
    """Everything that has a place in the domain's map."""
    host = system.description.host
    claims = [Claim(f"{XENS}{window.name}", window.name, window.span) for window in xen_windows(domain, host)]
    key = "static_memory" if domain.direct_map else "memory"
    claims += [Claim(f"{domain.where} {key}", "RAM", span) for span in ram(domain)]
    claims += [
        Claim(f"{region.where} guests.{domain.name}", SHARED, region.span_in(domain.name))
        for region in system.regions_of(domain.name)
    ]
    claims += [
        Claim(f"{device.where} base", "device registers", Span(device.base, VIRTIO_SLOT_BYTES))
        for device in system.devices
        if device.transport is Transport.MMIO and device.frontend == domain.name
    ]
    return claims


def check_host_map(system: System, modules: Mapping[str, Span]) -> Iterator[Finding]:
    claims, host = host_claims(system, modules), system.description.host
    for claim in claims:
        if claim.span.size_bytes and not any(bank.contains(claim.span) for bank in host.memory):
            banks = ", ".join(str(bank) for bank in host.memory)
            yield error("host-memory", claim.where, host.where, f"{claim.what} {claim.span} is not within RAM {banks}")
    for one, other in overlapping(claims):
        yield error("host-overlap", one.where, other.where, _overlap(one, other, " on the host"))


def check_imagebuilder(system: System) -> Iterator[Finding]:
    """Where ImageBuilder may load to, if that is said: in RAM, and apart from what is fixed."""
    settings, host = system.description.imagebuilder, system.description.host
    start, end = settings.memory_start, settings.memory_end
    if start is None or end is None:
        return
    place = "imagebuilder memory_end"
    if end <= start:
        found = f"{end:#010x} is not above {start:#010x}"
        yield error("imagebuilder", place, "imagebuilder memory_start", found)
        return
    room = Span(start, end - start)
    if not any(bank.contains(room) for bank in host.memory):
        yield error("imagebuilder", place, host.where, f"{room} is not within one bank of RAM")
    for claim in host_claims(system, {}):
        if claim.span.overlaps(room) and not claim.where.startswith(host.where):
            yield warning(
                "imagebuilder",
                place,
                claim.where,
                f"ImageBuilder may load modules into {room}, where {claim.what} {claim.span} is; end below it",
            )


def check_alignment(system: System) -> Iterator[Finding]:
    description = system.description
    page = "Xen's page of 4 KiB"
    for number, span in enumerate(description.static_heap):
        if span.address % HEAP_ALIGNMENT or span.size_bytes % HEAP_ALIGNMENT or not span.size_bytes:
            place = f"system static_heap[{number}]"
            yield error("alignment", place, "Xen's static heap", f"{span} is not in whole pieces of 64 KiB")
    for domain in system.domains:
        if domain.memory_bytes % PAGE_SIZE or not domain.memory_bytes:
            yield error("alignment", f"{domain.where} memory", page, f"{domain.memory_bytes:#x} is not in whole pages")
        for number, span in enumerate(domain.static_memory):
            yield from _whole_pages(f"{domain.where} static_memory[{number}]", span, page)
    for region in system.regions:
        if region.size_bytes % PAGE_SIZE or not region.size_bytes:
            yield error("alignment", f"{region.where} size", page, f"{region.size_bytes:#x} is not in whole pages")
        addresses = [("host", region.host), *((f"guests.{name}", gpa) for name, gpa in region.guests.items())]
        for key, address in addresses:
            if address is not None and address % PAGE_SIZE:
                yield error("alignment", f"{region.where} {key}", page, f"{address:#010x} is not the start of one")
    for device in system.devices:
        if device.base % VIRTIO_SLOT_BYTES:
            found = f"{device.base:#010x} is not a multiple of {VIRTIO_SLOT_BYTES:#x}"
            yield error("alignment", f"{device.where} base", "virtio-mmio slots", found)


def _whole_pages(place: str, span: Span, page: str) -> Iterable[Finding]:
    if not span.is_page_aligned or not span.size_bytes:
        yield error("alignment", place, page, f"{span} is not in whole pages")


def overlapping(claims: Sequence[Claim]) -> Iterator[tuple[Claim, Claim]]:
    """Yield claims that overlap, each with the one before it that reaches furthest: at most one pair a claim."""
    furthest: Claim | None = None
    for claim in sorted((c for c in claims if c.span.size_bytes), key=lambda claim: claim.span):
        if furthest is not None and claim.span.overlaps(furthest.span):
            yield (furthest, claim) if claim.what == "RAM" or _is_xens(claim) else (claim, furthest)
        if furthest is None or claim.span.end > furthest.span.end:
            furthest = claim


def _overlap(one: Claim, other: Claim, where: str) -> str:
    fixed = other.what == "RAM" or _is_xens(other)
    advice = "choose another address" if fixed else "move one of them"
    return f"{one.what} {one.span} overlaps {other.what} {other.span}{where}; {advice}"


def _is_xens(claim: Claim) -> bool:
    return claim.where.startswith(XENS)
