"""Sums: each domain's static memory, and everything together against the host's."""

from __future__ import annotations

from collections.abc import Iterator

from xenvirtio.static.check.finding import Finding, error, warning
from xenvirtio.static.description import Domain
from xenvirtio.static.guest_map import RAM_BANKS
from xenvirtio.static.span import round_up, size_text
from xenvirtio.static.system import System
from xenvirtio.static.xen_version import Feature

MIB = 1 << 20
XEN_BYTES = 64 * MIB
"""Xen itself and its heap: an allowance, not a limit that Xen has."""
FRAME_BYTES = 56
"""struct page_info on arm64, one for each 4 KiB of the host (xen/arch/arm/include/asm/mm.h)."""
SMALLEST_HEAP_BYTES = 32 * MIB


def check_static_memory(system: System) -> Iterator[Finding]:
    xen = system.description.xen
    for domain in system.domains:
        total = sum(span.size_bytes for span in domain.static_memory)
        if domain.static_memory and total != domain.memory_bytes:
            yield error(
                "static-memory-sum",
                f"{domain.where} static_memory",
                f"{domain.where} memory",
                f"{size_text(total)} of static memory is not the {size_text(domain.memory_bytes)} of memory;"
                " Xen panics unless they are equal",
            )
        if domain.direct_map and not domain.static_memory and not domain.is_dom0:
            yield error(
                "direct-map",
                f"{domain.where} direct_map",
                f"{domain.where} static_memory",
                "a direct-mapped domain without static memory makes Xen panic; give static_memory",
            )
        if sum(bank.size_bytes for bank in RAM_BANKS) < domain.memory_bytes:
            yield error(
                "guest-memory",
                f"{domain.where} memory",
                "Xen's two banks of guest RAM",
                f"{size_text(domain.memory_bytes)} does not fit into 3GiB and 1016GiB",
            )
        if _crosses_banks(domain) and not Feature.SPLIT_STATIC_MEMORY.is_in(xen):
            yield error(
                "xen-version",
                f"{domain.where} static_memory",
                f"system xen {xen}",
                f"a range reaches across the first 3GiB of the guest, which Xen counts wrongly before"
                f" {Feature.SPLIT_STATIC_MEMORY.since}, and panics; split it there",
            )


def _crosses_banks(domain: Domain) -> bool:
    if domain.direct_map:
        return False
    at, first = 0, RAM_BANKS[0].size_bytes
    for span in domain.static_memory:
        if at < first < at + span.size_bytes:
            return True
        at += span.size_bytes
    return False


def check_host_memory(system: System) -> Iterator[Finding]:
    """All domains, shared memory and Xen against the host's memory."""
    description = system.description
    host = sum(bank.size_bytes for bank in description.host.memory)
    # boot modules are given back once the domains are built, and so are not counted
    from_heap = sum(domain.memory_bytes for domain in system.domains if not domain.static_memory)
    static = sum(span.size_bytes for domain in system.domains for span in domain.static_memory)
    shared = sum(region.size_bytes for region in system.regions)
    xen = xen_bytes(system)
    total = from_heap + static + shared + xen
    parts = (
        f"domains {size_text(from_heap + static)}, shared memory {size_text(shared)},"
        f" Xen about {size_text(round_up(xen, MIB))}"
    )
    place = "all memory" if len(system.domains) > 1 else f"{system.domains[0].where} memory"
    if total > host:
        yield error(
            "host-memory-sum",
            place,
            description.host.where,
            f"{parts} are {size_text(round_up(total - host, MIB))} more than the {size_text(host)} of the host",
        )
    elif description.dom0 is None and not description.static_heap and all(d.static_memory for d in system.domains):
        left = host - total
        if left < SMALLEST_HEAP_BYTES:
            yield warning(
                "host-memory-sum",
                place,
                description.host.where,
                f"{parts} leave {size_text(round_up(left, MIB))} of {size_text(host)} for Xen's heap",
            )


def xen_bytes(system: System) -> int:
    """What Xen needs beside the domains' memory: its frame table, stage-2 tables and an allowance."""
    host = sum(bank.size_bytes for bank in system.description.host.memory)
    tables = sum(p2m_bytes(domain) for domain in system.domains)
    return XEN_BYTES + host // 4096 * FRAME_BYTES + tables


def p2m_bytes(domain: Domain) -> int:
    """The pool for a domain's stage-2 tables: domain_p2m_pages() of xen/arch/arm/dom0less-build.c."""
    return round_up(4096 * (256 * domain.vcpus + domain.memory_bytes // MIB + 128), MIB)
