"""Domains: XenStore without a dom0, what a Xen lacks, names and numbers, files, Zephyr's limits."""

from __future__ import annotations

from collections.abc import Iterator

from xenvirtio.static.check.finding import Finding, error, note, warning
from xenvirtio.static.description import Domain, Enhanced, Os, View
from xenvirtio.static.plan import Transport
from xenvirtio.static.system import System
from xenvirtio.static.xen_version import Feature

MODULES_MAX = 32
"""MAX_MODULES (xen/include/xen/bootfdt.h); Xen itself and the device tree are two of them."""
ARGUMENTS_MAX = 1023
"""BOOTMOD_MAX_CMDLINE without its NUL; what is longer is cut off."""
GICV2_VCPUS_MAX = 8
"""vgic_max_vcpus() of xen/arch/arm/vgic.c."""
_OF_THE_DESCRIPTION = {"dom0_mem": "memory", "dom0_max_vcpus": "vcpus"}


def check_domains(system: System) -> Iterator[Finding]:
    for domain in system.domains:
        yield from _check_xenstore(system, domain)
        yield from _check_version(system, domain)
        yield from _check_arguments(domain)
        if system.description.host.gic_version == 2 and domain.vcpus > GICV2_VCPUS_MAX:
            yield error(
                "vcpus",
                f"{domain.where} vcpus",
                f"GICv2 of {system.description.host.where}",
                f"{domain.vcpus} vCPUs, of which a GICv2 has {GICV2_VCPUS_MAX}; take fewer",
            )
        yield from _check_files(system, domain)
        if domain.os is Os.ZEPHYR:
            yield from _check_zephyr(system, domain)
    yield from _check_domids(system)
    yield from _check_capabilities(system)
    yield from _check_modules(system)
    yield from _check_xen_arguments(system)


def _check_xenstore(system: System, domain: Domain) -> Iterator[Finding]:
    description = system.description
    if domain.is_dom0 or not domain.enhanced.has_xenstore:
        return
    if description.dom0 is None and not any("xenstore" in other.capabilities for other in description.domains):
        yield error(
            "xenstore-absent",
            f"{domain.where} enhanced",
            "the absent [dom0]",
            f'"{domain.enhanced.value}" without a domain that serves XenStore makes Xen panic; take "no-xenstore"',
        )
    elif domain.vcpus > 1:
        yield note(
            "vcpus-xenstore",
            f"{domain.where} vcpus",
            "dom0",
            f"init-dom0less fails for {domain.vcpus} vCPUs and leaves out the domains after it; `xenvirtio control`"
            " does not",
        )


def _check_version(system: System, domain: Domain) -> Iterator[Finding]:
    xen = system.description.xen
    uses = (
        ("enhanced", domain.enhanced is Enhanced.LEGACY, Feature.LEGACY_XENSTORE),
        ("capabilities", bool(domain.capabilities), Feature.CAPABILITIES),
        ("trap_unmapped_accesses", not domain.trap_unmapped_accesses, Feature.UNMAPPED_READS),
        ("grant_frames", domain.grant_frames is not None, Feature.GRANT_LIMITS),
    )
    for key, is_used, feature in uses:
        if is_used and not feature.is_in(xen):
            yield error(
                "xen-version",
                f"{domain.where} {key}",
                f"system xen {xen}",
                f"{feature.what}: only from Xen {feature.since} on; leave it out",
            )


def _check_arguments(domain: Domain) -> Iterator[Finding]:
    length = len(domain.arguments.encode())
    if length > ARGUMENTS_MAX:
        yield error(
            "arguments-length",
            f"{domain.where} arguments",
            "Xen's boot modules",
            f"{length} bytes, of which Xen takes {ARGUMENTS_MAX}; shorten them",
        )


def _check_xen_arguments(system: System) -> Iterator[Finding]:
    description = system.description
    place = "system xen_arguments"
    if len(description.xen_arguments.encode()) > ARGUMENTS_MAX:
        yield error(
            "arguments-length", place, "Xen's command line", f"it is longer than the {ARGUMENTS_MAX} bytes Xen takes"
        )
    for argument in description.xen_arguments.split():
        key = _OF_THE_DESCRIPTION.get(argument.partition("=")[0])
        if key:
            other = f"dom0 {key}" if description.dom0 else "the absent [dom0]"
            yield error("xen-arguments", place, other, f"{argument!r} is made from [dom0] {key}; leave it out here")


def _check_files(system: System, domain: Domain) -> Iterator[Finding]:
    if domain.ramdisk is not None or domain.os is Os.ZEPHYR:
        return
    if domain.files:
        yield error(
            "files-ramdisk",
            f"{domain.where} files",
            f"{domain.where} ramdisk",
            "files are placed into the domain's ramdisk, and it has none; give ramdisk, or leave files out",
        )
    name = domain.name
    if system.regions_of(name) or system.channels_of(name) or system.devices_of(name):
        yield note(
            "plan-ramdisk",
            domain.where,
            f"{domain.where} ramdisk",
            f"without a ramdisk, copy its plan to /etc/xenvirtio/plan.toml in the root file system of {name}",
        )


def _check_zephyr(system: System, domain: Domain) -> Iterator[Finding]:
    for key, is_given in (("ramdisk", domain.ramdisk is not None), ("files", bool(domain.files))):
        if is_given:
            yield error(
                "zephyr",
                f"{domain.where} {key}",
                f"{domain.where} os",
                f"Zephyr has no {key}; its plan is compiled in, leave {key} out",
            )
    if domain.view is View.UIO:
        yield error(
            "zephyr",
            f"{domain.where} view",
            f"{domain.where} os",
            "Zephyr has no UIO; it maps shared memory itself: leave view out",
        )
    if domain.enhanced.has_xenstore:
        yield warning(
            "zephyr",
            f"{domain.where} enhanced",
            f"{domain.where} os",
            f'Zephyr\'s XenStore client cannot wait for dom0 with "{domain.enhanced.value}"; take "no-xenstore"',
        )
    if domain.direct_map:
        yield warning(
            "zephyr",
            f"{domain.where} direct_map",
            f"{domain.where} os",
            "Zephyr's board xenvm is linked for RAM at 0x40000000; a direct-mapped one needs an overlay of its own",
        )
    for device in system.devices_of(domain.name):
        if device.transport is not Transport.MMIO:
            yield note(
                "zephyr",
                f"{device.where} transport",
                f"{domain.where} os",
                f'Zephyr has no driver for "{device.transport.value}"; the header gives its numbers to your own code',
            )


def _check_domids(system: System) -> Iterator[Finding]:
    taken: dict[int, Domain] = {}
    first = 0 if system.description.dom0 else 1
    for counted, domain in enumerate(system.domains, first):
        domid = system.domids[domain.name]
        if domid in taken:
            yield error(
                "domid-twice",
                f"{domain.where} domid",
                taken[domid].where,
                f"both are {domid}; leave domid out, Xen counts the domains in their order",
            )
        elif domid != counted:
            yield warning(
                "domid-order",
                f"{domain.where} domid",
                "Xen's order of domains",
                f"it says {domid}, but Xen counts the nodes in their order and gives {counted}",
            )
        taken.setdefault(domid, domain)


def _check_capabilities(system: System) -> Iterator[Finding]:
    for capability in ("hardware", "xenstore"):
        holders = [domain for domain in system.domains if domain.is_dom0 or capability in domain.capabilities]
        for domain in holders[1:]:
            yield error(
                "capabilities",
                f"{domain.where} capabilities",
                holders[0].where,
                f"both have {capability!r}, which one domain has; dom0 has all of them",
            )


def _check_modules(system: System) -> Iterator[Finding]:
    kernels = {domain.kernel: domain for domain in reversed(system.domains)}
    for domain in system.domains:
        if domain.ramdisk in kernels:
            yield error(
                "module-kinds",
                f"{domain.where} ramdisk",
                f"{kernels[domain.ramdisk].where} kernel",
                f"{domain.ramdisk!r} is a ramdisk here and a kernel there; Xen takes a place in memory for one kind",
            )
    count, last = 2 + len(boot_modules(system)), system.domains[-1].where
    if count > MODULES_MAX:
        yield error(
            "modules-number",
            f"the modules up to {last}",
            "Xen's table of boot modules",
            f"{count} with Xen and the device tree, and Xen takes {MODULES_MAX}; let domains share kernels",
        )


def boot_modules(system: System) -> list[tuple[str, str]]:
    """What Xen is given, as (kind, which): a kernel file is one module for all domains that boot it as it is."""
    found = set()
    for domain in system.domains:
        # a gate waits for the windows of its domain, and a ramdisk has the domain's plan in it
        own = [d.base for d in system.devices if d.transport is Transport.MMIO and d.frontend == domain.name]
        found.add(("kernel", f"{domain.kernel} gated for {sorted(own)}" if domain.gate else domain.kernel))
        if domain.ramdisk is not None:
            found.add(("ramdisk", domain.name))
        has_views = domain.view is View.UIO and bool(system.regions_of(domain.name))
        if not domain.is_dom0 and (own or has_views):
            found.add(("device-tree", domain.name))
    return sorted(found)
