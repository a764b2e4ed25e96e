"""Virtio devices: both ends reachable by their transport, no number twice, nobody touched before it is there."""

from __future__ import annotations

from collections.abc import Iterator

from xenvirtio.static.check.finding import Finding, error, warning
from xenvirtio.static.description import Domain, Os
from xenvirtio.static.guest_map import vpl011_irq
from xenvirtio.static.plan import SPI_FIRST, SPI_LAST, Transport
from xenvirtio.static.span import size_text
from xenvirtio.static.system import System, SystemDevice
from xenvirtio.static.xen_version import Feature
from xenvirtio.virtio.device import DeviceType

BUS_BYTES_MIN = 64 << 10
"""Two rings of messages, and something left for queues and buffers."""


def check_devices(system: System) -> Iterator[Finding]:
    for device in system.devices:
        match device.transport:
            case Transport.MMIO:
                yield from _check_mmio(system, device)
            case Transport.MSG_STATIC:
                yield from _check_static(system, device)
            case Transport.MSG_ARGO:
                yield from _check_argo(system, device)
        if device.type is DeviceType.BLOCK and not device.resource:
            yield warning(
                "resource",
                f"{device.where} resource",
                system.description.domain(device.backend).where,
                f'{device.backend} has nothing to serve it from; give resource = {{ file = "/srv/disk.img" }}',
            )
    yield from _check_numbers(system)
    yield from _check_buses(system)
    for domain in system.domains:
        if domain.gate and not any(_is_its_window(device, domain) for device in system.devices):
            yield error(
                "gate",
                f"{domain.where} gate",
                "the [[device]] tables",
                f"{domain.name} has no virtio-mmio device, so nothing would ever open the gate; leave gate out",
            )


def _is_its_window(device: SystemDevice, domain: Domain) -> bool:
    return device.transport is Transport.MMIO and device.frontend == domain.name


def _check_mmio(system: System, device: SystemDevice) -> Iterator[Finding]:
    frontend, backend = (system.description.domain(name) for name in (device.frontend, device.backend))
    if frontend.is_dom0:
        yield error(
            "mmio-frontend",
            f"{device.where} frontend",
            "dom0",
            'Xen gives dom0 no emulated registers; take transport = "msg-static" or "msg-argo"',
        )
    if not backend.is_dom0 and "control" not in backend.capabilities:
        yield error(
            "mmio-backend",
            f"{device.where} backend",
            backend.where,
            f"{backend.name} may not be an IOREQ server for another domain; let dom0 serve it,"
            ' or take transport = "msg-static"',
        )
    if device.grants and not frontend.enhanced.has_channels:
        yield error(
            "grants",
            f"{device.where} grants",
            f"{frontend.where} enhanced",
            f'{frontend.name} has no grants with "{frontend.enhanced.value}"; take "no-xenstore", or grants = false',
        )
    yield from _check_irq(system, device, frontend)
    reads_ones = not frontend.trap_unmapped_accesses and Feature.UNMAPPED_READS.is_in(system.description.xen)
    if not frontend.gate and not reads_ones and not frontend.is_dom0:
        or_reads = (
            "set trap_unmapped_accesses = false and bind the driver late"
            if Feature.UNMAPPED_READS.is_in(system.description.xen)
            else "load the driver as a module once the backend is there"
        )
        yield warning(
            "mmio-early",
            device.where,
            f"{frontend.where} gate",
            f"{frontend.name} crashes when it touches the device before {backend.name} serves it; set gate = true, or"
            f" {or_reads}",
        )


def _check_irq(system: System, device: SystemDevice, frontend: Domain) -> Iterator[Finding]:
    place = f"{device.where} irq"
    last = SPI_LAST if frontend.spis is None else min(SPI_FIRST + frontend.spis - 1, SPI_LAST)
    if not SPI_FIRST <= device.irq <= last:
        other = "the GIC's shared interrupts" if frontend.spis is None else f"{frontend.where} spis"
        yield error("irq-range", place, other, f"interrupt {device.irq} is not one of {SPI_FIRST} to {last}")
    if device.irq == vpl011_irq(frontend, system.description.host):
        yield error(
            "irq-twice",
            place,
            f"{frontend.where} vpl011",
            f"interrupt {device.irq} is that of the domain's UART; take another, or leave irq out",
        )


def _check_static(system: System, device: SystemDevice) -> Iterator[Finding]:
    region, channel = system.region(device.region), system.channel(device.channel)
    for name in (device.frontend, device.backend):
        if name not in region.guests:
            yield error(
                "static-ends",
                f"{device.where} region",
                f"{region.where} guests",
                f"region {region.id!r} is not in {name}; both ends of a device share its region",
            )
        if channel.end_of(name) is None:
            yield error(
                "static-ends",
                f"{device.where} channel",
                f"{channel.where} ends",
                f"channel {channel.name!r} does not reach {name}; both ends of a device share its channel",
            )


    if region.size_bytes < BUS_BYTES_MIN:
        yield error(
            "bus-size",
            f"{device.where} region",
            f"{region.where} size",
            f"{size_text(region.size_bytes)} is too small for rings and buffers; a bus takes at least"
            f" {size_text(BUS_BYTES_MIN)}",
        )


def _check_argo(system: System, device: SystemDevice) -> Iterator[Finding]:
    arguments = system.description.xen_arguments.split()
    if not any(argument.partition("=")[0] == "argo" for argument in arguments):
        yield error(
            "argo-off",
            f"{device.where} transport",
            "system xen_arguments",
            "Xen offers Argo only when told so; add argo to xen_arguments",
        )
    for name in (device.frontend, device.backend):
        domain = system.description.domain(name)
        if domain.os is Os.ZEPHYR:
            yield error(
                "zephyr", f"{device.where} transport", f"{domain.where} os", f"{name} runs Zephyr, which has no Argo"
            )


def _check_numbers(system: System) -> Iterator[Finding]:
    """Numbers that two devices have alike. Bases are ranges, and found in the address maps."""
    taken: dict[tuple[str, str, int], SystemDevice] = {}
    for device in system.devices:
        numbers = [("devid", device.frontend, device.devid)]
        if device.transport is Transport.MMIO:
            numbers.append(("irq", device.frontend, device.irq))
        for key in numbers:
            other = taken.setdefault(key, device)
            if other is not device:
                name, domain, number = key
                yield error(
                    f"{name}-twice",
                    f"{device.where} {name}",
                    f"{other.where} {name}",
                    f"both are {number} in {domain}; change one, or leave it out",
                )


def _check_buses(system: System) -> Iterator[Finding]:
    """Devices may share a bus: then they share its two ends, its region and its channel."""
    users: dict[tuple[str, str], SystemDevice] = {}
    for device in system.devices:
        keys: list[tuple[str, str]] = []
        if device.transport is Transport.MSG_STATIC:
            keys = [("region", device.region), ("channel", device.channel)]
        elif device.transport is Transport.MSG_ARGO:
            keys = [("argo_port", f"{device.argo_port:#x} of {name}") for name in (device.frontend, device.backend)]
        for key in keys:
            other = users.setdefault(key, device)
            if _bus(other) != _bus(device):
                name, which = key
                yield error(
                    "bus",
                    f"{device.where} {name}",
                    f"{other.where} {name}",
                    f"both take {which}, with another frontend, backend, region or channel; devices that share one"
                    " share all of them",
                )
                break


def _bus(device: SystemDevice) -> tuple[str, str, str, str]:
    return device.frontend, device.backend, device.region, device.channel
