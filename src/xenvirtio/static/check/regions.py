"""Shared memory: names, numbers, who maps it and how."""

from __future__ import annotations

from collections.abc import Iterator

from xenvirtio.static.check.finding import Finding, error, warning
from xenvirtio.static.description import Os, View
from xenvirtio.static.system import SharedRegion, System
from xenvirtio.static.xen_version import Feature

SHM_ID_MAX = 15
REGIONS_MAX = 32
"""MAX_SHM_ID_LENGTH without its NUL, and NR_SHMEM_BANKS (xen/include/xen/bootfdt.h)."""


def check_regions(system: System) -> Iterator[Finding]:
    xen = system.description.xen
    for region in system.regions:
        if len(region.id) > SHM_ID_MAX:
            yield error(
                "shm-id-length",
                f"{region.where} id" if region.where.startswith("region") else region.where,
                "Xen's xen,shm-id",
                f"{region.id!r} has {len(region.id)} characters; Xen takes at most {SHM_ID_MAX}",
            )
        if region.host is None and not Feature.HEAP_REGIONS.is_in(xen):
            yield error(
                "xen-version",
                region.where,
                f"system xen {xen}",
                f"{Feature.HEAP_REGIONS.what}: only from Xen {Feature.HEAP_REGIONS.since} on; give host = ADDRESS",
            )
        if len(region.guests) < 2:
            (only,) = region.guests
            yield warning(
                "region-alone",
                f"{region.where} guests",
                system.description.domain(only).where,
                f"{only} shares it with nobody; name the other domain as well",
            )
        yield from _check_direct_map(system, region)
        yield from _check_views(system, region)
    for region in system.regions[REGIONS_MAX:]:
        yield error(
            "regions-number",
            region.where,
            "Xen's table of shared memory",
            f"it is number {system.regions.index(region) + 1} and Xen takes {REGIONS_MAX}; join some of them",
        )


def _check_direct_map(system: System, region: SharedRegion) -> Iterator[Finding]:
    for name, address in region.guests.items():
        if system.description.domain(name).direct_map and address != region.host:
            yield error(
                "direct-map",
                f"{region.where} guests.{name}",
                f"{region.where} host",
                f"{name} is direct-mapped: its address {address:#010x} must be the host's, {region.host:#010x}",
            )


def _check_views(system: System, region: SharedRegion) -> Iterator[Finding]:
    domains = [system.description.domain(name) for name in region.guests]
    uncached = [domain for domain in domains if domain.view is View.UIO]
    cached = [domain for domain in domains if domain.view is not View.UIO]
    if uncached and cached:
        how = "the kernel's own mapping" if cached[0].os is Os.ZEPHYR else "/dev/mem"
        yield warning(
            "views-mixed",
            f"{uncached[0].where} view",
            f"{cached[0].where} view",
            f"region {region.id!r} is mapped uncached by UIO here and cached by {how} there, which is incoherent on"
            " real hardware; let both be the same",
        )
