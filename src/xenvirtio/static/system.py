"""A whole system with everything assigned, and what each of its domains knows of it.

Assigned is what the description leaves out, always in the order of its tables, so that the same file gives the same
system. No assignment fails: what does not fit is assigned all the same, and `check` finds it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from xenvirtio.ids import DomId, EventPort, RemotePort, Spi
from xenvirtio.static.description import Description, Domain, Setting
from xenvirtio.static.plan import Channel, Plan, PlannedDevice, Region, Role, Transport
from xenvirtio.static.span import Span
from xenvirtio.virtio.device import DeviceType


@dataclass(frozen=True, slots=True)
class SharedRegion:
    """Static shared memory. Without `host` Xen takes it from its heap. `guests`: address in each domain."""

    where: str
    id: str
    size_bytes: int
    guests: Mapping[str, int]
    host: int | None = None
    owner: str | None = None

    def span_in(self, domain: str) -> Span:
        """Raises KeyError when the domain has no part in it."""
        return Span(self.guests[domain], self.size_bytes)

    @property
    def host_span(self) -> Span | None:
        return None if self.host is None else Span(self.host, self.size_bytes)


@dataclass(frozen=True, slots=True)
class ChannelEnd:
    domain: str
    port: int


@dataclass(frozen=True, slots=True)
class ChannelPair:
    """A static event channel with both ends."""

    where: str
    name: str
    ends: tuple[ChannelEnd, ChannelEnd]

    def end_of(self, domain: str) -> ChannelEnd | None:
        return next((end for end in self.ends if end.domain == domain), None)

    def peer_of(self, domain: str) -> ChannelEnd:
        """The other domain's end. Raises KeyError when `domain` has none."""
        for end, other in (self.ends, self.ends[::-1]):
            if end.domain == domain:
                return other
        raise KeyError(domain)


@dataclass(frozen=True, slots=True)
class SystemDevice:
    """One virtio device. What its transport has no use for is 0, False or empty."""

    where: str
    name: str
    type: DeviceType
    frontend: str
    backend: str
    transport: Transport
    devid: int
    base: int = 0
    irq: int = 0
    grants: bool = False
    region: str = ""
    channel: str = ""
    argo_port: int = 0
    resource: Mapping[str, Setting] = field(default_factory=dict)
    settings: Mapping[str, Setting] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class System:
    """`generation` is a hash of all of it: two domains with plans of different generations were built apart."""

    description: Description
    domids: Mapping[str, DomId]
    """Every domain by name, in the order of its node in the tree."""
    regions: tuple[SharedRegion, ...]
    channels: tuple[ChannelPair, ...]
    devices: tuple[SystemDevice, ...]
    generation: str

    @property
    def domains(self) -> tuple[Domain, ...]:
        return self.description.domains

    def region(self, identifier: str) -> SharedRegion:
        """Raises KeyError when there is none of that id."""
        for region in self.regions:
            if region.id == identifier:
                return region
        raise KeyError(identifier)

    def channel(self, name: str) -> ChannelPair:
        """Raises KeyError when there is none of that name."""
        for channel in self.channels:
            if channel.name == name:
                return channel
        raise KeyError(name)

    def regions_of(self, domain: str) -> list[SharedRegion]:
        return [region for region in self.regions if domain in region.guests]

    def channels_of(self, domain: str) -> list[ChannelPair]:
        return [channel for channel in self.channels if channel.end_of(domain)]

    def devices_of(self, domain: str) -> list[SystemDevice]:
        """The devices that the domain has or serves."""
        return [device for device in self.devices if domain in (device.frontend, device.backend)]

    def plan_of(self, domain: str) -> Plan:
        """What the domain is told: `/etc/xenvirtio/plan.toml`. Raises KeyError for an unknown domain."""
        return Plan(
            name=domain,
            domid=self.domids[domain],
            generation=self.generation,
            domains=dict(self.domids),
            regions=tuple(Region(r.id, r.guests[domain], r.size_bytes) for r in self.regions_of(domain)),
            channels=tuple(_planned_channel(channel, domain) for channel in self.channels_of(domain)),
            devices=tuple(_planned_device(device, domain) for device in self.devices_of(domain)),
        )


def _planned_channel(channel: ChannelPair, domain: str) -> Channel:
    own, peer = channel.end_of(domain), channel.peer_of(domain)
    assert own is not None, "only channels of the domain come here"
    return Channel(channel.name, EventPort(own.port), peer.domain, RemotePort(peer.port))


def _planned_device(device: SystemDevice, domain: str) -> PlannedDevice:
    is_frontend = device.frontend == domain
    return PlannedDevice(
        name=device.name,
        type=device.type,
        role=Role.FRONTEND if is_frontend else Role.BACKEND,
        peer=device.backend if is_frontend else device.frontend,
        devid=device.devid,
        transport=device.transport,
        base=device.base,
        irq=Spi(device.irq),
        grants=device.grants,
        region=device.region,
        channel=device.channel,
        argo_port=device.argo_port,
    )
