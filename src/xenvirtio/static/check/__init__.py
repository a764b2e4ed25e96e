"""`check(system)`: everything that is wrong with a statically partitioned system, before anybody boots it.

A rule is a function in one of these files; it sees the resolved system, and nothing outside it: where files lie in
memory is an argument. Facts about Xen come from its source, on the branch of the release that the description names.
"""

from __future__ import annotations

from collections.abc import Mapping

from xenvirtio.static.check.addresses import check_alignment, check_guest_maps, check_host_map, check_imagebuilder
from xenvirtio.static.check.channels import check_channels
from xenvirtio.static.check.devices import check_devices
from xenvirtio.static.check.domains import check_domains
from xenvirtio.static.check.finding import Finding, Severity
from xenvirtio.static.check.memory import check_host_memory, check_static_memory
from xenvirtio.static.check.regions import check_regions
from xenvirtio.static.span import Span
from xenvirtio.static.system import System

__all__ = ["Finding", "Severity", "check"]


def check(system: System, modules: Mapping[str, Span] | None = None) -> list[Finding]:
    """Return what is wrong, errors first, in the order of the rules.

    `modules` says where boot modules lie (file -> range, as `host_map.place_modules` gives it); without it they are not
    checked.
    """
    placed = modules or {}
    found = [
        *check_domains(system),
        *check_alignment(system),
        *check_static_memory(system),
        *check_host_memory(system),
        *check_host_map(system, placed),
        *check_imagebuilder(system),
        *check_regions(system),
        *check_guest_maps(system),
        *check_channels(system),
        *check_devices(system),
    ]
    order = list(Severity)  # the sort is stable
    return sorted(found, key=lambda finding: order.index(finding.severity))
