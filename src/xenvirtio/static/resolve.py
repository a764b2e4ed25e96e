"""Assign what a description leaves out.

    domid          in the order of the tables, from 1: dom0 is 0, and Xen keeps 0 for it even where there is no dom0
    port           the lowest free one of the domain, from 8 on
    host address   from the end of the host's memory downwards; only where a direct-mapped domain needs one
    guest address  the host's in a direct-mapped domain, else the lowest free one behind RAM and from 0x50000000 on
    devid          the lowest free one of the frontend
    base, irq      the lowest free slot of 0x02000000, 0x200 apart; the lowest free interrupt from 33 on
    grants         as libxl does: unless the backend is dom0
    region, channel  named as the device; made where there is none of that name
    argo_port      the lowest free one from 0x76690000 on ("vi")
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from enum import Enum

from xenvirtio.ids import DomId
from xenvirtio.static.description import (
    ChannelDescription,
    Description,
    DeviceDescription,
    Domain,
    RegionDescription,
)
from xenvirtio.static.guest_map import VIRTIO_SLOT_BYTES, VIRTIO_SPI_FIRST, VIRTIO_WINDOW, ram, vpl011_irq, xen_windows
from xenvirtio.static.plan import Transport
from xenvirtio.static.span import Span, round_up
from xenvirtio.static.system import ChannelEnd, ChannelPair, SharedRegion, System, SystemDevice

PORT_FIRST = 8
"""1 is XenStore's, and Linux takes a few more of the lowest ones at boot."""
GUEST_REGION_FIRST = 0x5000_0000
HOST_ALIGNMENT = GUEST_ALIGNMENT = 2 << 20
"""Xen maps 2 MiB at a time where both addresses allow it."""
ARGO_PORT_FIRST = 0x7669_0000
REGION_BYTES = 1 << 20
"""Size of a region made for a device."""


def resolve(description: Description) -> System:
    """Return the whole system. Never fails: `check` says what does not work."""
    region_descriptions, channel_descriptions = _with_those_of_devices(description)
    domids = _domids(description)
    regions = _regions(description, region_descriptions)
    channels = _channels(channel_descriptions)
    devices = _devices(description)
    return System(
        description=description,
        domids=domids,
        regions=tuple(regions),
        channels=tuple(channels),
        devices=tuple(devices),
        generation=_generation(description, domids, regions, channels, devices),
    )


def _with_those_of_devices(description: Description) -> tuple[list[RegionDescription], list[ChannelDescription]]:
    regions, channels = list(description.regions), list(description.channels)
    known_regions = {region.id for region in regions}
    known_channels = {channel.name for channel in channels}
    for device in description.devices:
        if device.transport is not Transport.MSG_STATIC:
            continue
        ends: dict[str, int | None] = {device.frontend: None, device.backend: None}
        region, channel = device.region or device.name, device.channel or device.name
        if region not in known_regions:
            known_regions.add(region)
            regions.append(RegionDescription(f"{device.where} region", region, REGION_BYTES, ends))
        if channel not in known_channels:
            known_channels.add(channel)
            channels.append(ChannelDescription(f"{device.where} channel", channel, ends))
    return regions, channels


def _domids(description: Description) -> dict[str, DomId]:
    # an overridden one does not move the others: Xen counts nodes
    return {
        domain.name: DomId(number if domain.domid is None else domain.domid)
        for number, domain in enumerate(description.domains, 0 if description.dom0 else 1)
    }


class _Numbers:
    """The numbers of one domain that are taken, and the lowest free one."""

    def __init__(self, first: int, step: int = 1) -> None:
        self._next = first
        self._step = step
        self._taken: set[int] = set()

    def take(self, number: int) -> None:
        self._taken.add(number)

    def take_free(self) -> int:
        while self._next in self._taken:
            self._next += self._step
        self._taken.add(self._next)
        return self._next


class _Addresses:
    """The ranges of one address map that are taken, and free ones above or below."""

    def __init__(self) -> None:
        self._taken: list[Span] = []

    def take(self, span: Span) -> None:
        if span.size_bytes:
            self._taken.append(span)

    def take_free_from(self, first: int, size_bytes: int) -> int:
        """The lowest free address from `first` on."""
        address = first
        for taken in sorted(self._taken):
            if taken.overlaps(Span(address, size_bytes)):
                address = round_up(taken.end, GUEST_ALIGNMENT)
        self.take(Span(address, size_bytes))
        return address

    def take_free_below(self, end: int, size_bytes: int) -> int:
        """The highest free address that ends at or before `end`; 0 when there is none."""
        address = max(end - size_bytes, 0) // HOST_ALIGNMENT * HOST_ALIGNMENT
        for taken in sorted(self._taken, key=lambda span: span.end, reverse=True):
            if taken.overlaps(Span(address, size_bytes)):
                address = max(taken.address - size_bytes, 0) // HOST_ALIGNMENT * HOST_ALIGNMENT
        self.take(Span(address, size_bytes))
        return address


def _regions(description: Description, regions: list[RegionDescription]) -> list[SharedRegion]:
    domains = {domain.name: domain for domain in description.domains}
    hosts = _host_addresses(description, regions, domains)
    maps: dict[str, _Addresses] = {}
    for domain in description.domains:
        maps[domain.name] = _Addresses()
        for span in (*ram(domain), VIRTIO_WINDOW, *(w.span for w in xen_windows(domain, description.host))):
            maps[domain.name].take(span)
    for region in regions:
        for name, address in region.guests.items():
            if address is not None:
                maps[name].take(Span(address, region.size_bytes))
    found = []
    for region, host in zip(regions, hosts, strict=True):
        guests = {}
        for name, address in region.guests.items():
            if address is None and domains[name].direct_map:
                address = host
            guests[name] = (
                maps[name].take_free_from(GUEST_REGION_FIRST, region.size_bytes) if address is None else address
            )
        found.append(SharedRegion(region.where, region.id, region.size_bytes, guests, host, region.owner))
    return found


def _host_addresses(
    description: Description, regions: list[RegionDescription], domains: Mapping[str, Domain]
) -> list[int | None]:
    host_map = _Addresses()
    fixed = [*description.static_heap, *(device.span for device in description.host.early)]
    for span in (*fixed, *(span for domain in description.domains for span in domain.static_memory)):
        host_map.take(span)
    for region in regions:
        if region.host is not None:
            host_map.take(Span(region.host, region.size_bytes))
    end = max(bank.end for bank in description.host.memory)
    found = []
    for region in regions:
        host = region.host
        direct = [address for name, address in region.guests.items() if domains[name].direct_map]
        if host is None and direct:
            said = [address for address in direct if address is not None]
            host = said[0] if said else host_map.take_free_below(end, region.size_bytes)
        found.append(host)
    return found


def _channels(channels: list[ChannelDescription]) -> list[ChannelPair]:
    ports: dict[str, _Numbers] = {}
    for channel in channels:
        for name, port in channel.ends.items():
            numbers = ports.setdefault(name, _Numbers(PORT_FIRST))
            if port is not None:
                numbers.take(port)
    found = []
    for channel in channels:
        one, other = (
            ChannelEnd(name, ports[name].take_free() if port is None else port) for name, port in channel.ends.items()
        )
        found.append(ChannelPair(channel.where, channel.name, (one, other)))
    return found


def _devices(description: Description) -> list[SystemDevice]:
    names = [domain.name for domain in description.domains]
    devids = {name: _Numbers(0) for name in names}
    bases = {name: _Numbers(VIRTIO_WINDOW.address, VIRTIO_SLOT_BYTES) for name in names}
    irqs = {name: _Numbers(VIRTIO_SPI_FIRST) for name in names}
    for domain in description.domains:
        irqs[domain.name].take(vpl011_irq(domain, description.host) or 0)
    argo_ports = _Numbers(ARGO_PORT_FIRST)
    for device in description.devices:
        for numbers, said in (
            (devids[device.frontend], device.devid),
            (bases[device.frontend], device.base),
            (irqs[device.frontend], device.irq),
            (argo_ports, device.argo_port),
        ):
            if said is not None:
                numbers.take(said)

    def number(numbers: _Numbers, said: int | None, transport: Transport) -> int:
        if device.transport is not transport:
            return 0
        return numbers.take_free() if said is None else said

    found = []
    for device in description.devices:
        is_static = device.transport is Transport.MSG_STATIC
        devid = number(devids[device.frontend], device.devid, device.transport)
        found.append(
            SystemDevice(
                where=device.where,
                name=device.name,
                type=device.type,
                frontend=device.frontend,
                backend=device.backend,
                transport=device.transport,
                devid=devid,
                base=number(bases[device.frontend], device.base, Transport.MMIO),
                irq=number(irqs[device.frontend], device.irq, Transport.MMIO),
                grants=_uses_grants(device, description),
                region=(device.region or device.name) if is_static else "",
                channel=(device.channel or device.name) if is_static else "",
                argo_port=number(argo_ports, device.argo_port, Transport.MSG_ARGO),
                resource=device.resource,
                settings=device.settings,
            )
        )
    return found


def _uses_grants(device: DeviceDescription, description: Description) -> bool:
    if device.transport is not Transport.MMIO:
        return False
    return not description.domain(device.backend).is_dom0 if device.grants is None else device.grants


def _generation(*parts: object) -> str:
    """A hash of what was described and assigned. Names of files count, what is in them does not."""
    return hashlib.sha256(_normal(parts).encode()).hexdigest()[:16]


_NOT_COUNTED = {"where", "source"}
"""Places in the file: moving a table, or renaming the file, changes nothing."""


def _normal(value: object) -> str:
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key!r}:{_normal(value[key])}" for key in value) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(_normal(item) for item in value) + "]"
    if hasattr(value, "__dataclass_fields__"):
        fields = ((name, getattr(value, name)) for name in value.__dataclass_fields__ if name not in _NOT_COUNTED)
        return type(value).__name__ + "(" + ",".join(f"{name}={_normal(item)}" for name, item in fields) + ")"
    return repr(value)
