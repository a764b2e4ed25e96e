"""What one VM of a statically partitioned system knows of it: `/etc/xenvirtio/plan.toml`.

    format = 1
    name = "frontend"
    domid = 1
    generation = "5d41402abc4b2a76"      # of the whole description; two ends that differ were built apart

    [domains]                            # every domain by name, this one included
    dom0 = 0
    frontend = 1

    [[region]]                           # static shared memory, where it lies in this domain
    id = "ring0"
    address = 0x50000000
    size = 0x100000

    [[channel]]                          # static event channels
    name = "ring0"
    port = 10
    peer = "backend"
    peer_port = 11

    [[device]]
    name = "root"
    type = "block"
    role = "frontend"                    # or "backend"
    peer = "dom0"
    devid = 0
    transport = "mmio"                   # base, irq, grants
    base = 0x2000000
    irq = 33
    grants = true

    [[device]]
    name = "data"
    type = "block"
    role = "frontend"
    peer = "backend"
    devid = 1
    transport = "msg-static"             # region and channel; "msg-argo" has argo_port
    region = "ring0"
    channel = "ring0"

The static generator writes it, the programs in the VM read it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from xenvirtio.errors import ConfigurationError
from xenvirtio.ids import DomId, EventPort, RemotePort, Spi
from xenvirtio.toml_table import Table, between, load_toml, one_of, parse_toml, toml_text
from xenvirtio.virtio.device import DeviceType

PLAN_FORMAT = 1
DEFAULT_PLAN = Path("/etc/xenvirtio/plan.toml")
DOMID_MAX = 0x7FEF
ADDRESS_MAX = (1 << 48) - 1
PORT_MAX = 1023
"""Highest event channel of an ordinary dom0less domain (xen/arch/arm/dom0less-build.c, max_evtchn_port)."""
ARGO_PORT_MAX = (1 << 32) - 1
SPI_FIRST, SPI_LAST = 32, 1019


_NO_SPI = Spi(0)


class Role(Enum):
    """Which end of a device a domain is."""

    FRONTEND = "frontend"
    BACKEND = "backend"


class Transport(Enum):
    """How the two ends of a device meet."""

    MMIO = "mmio"
    MSG_STATIC = "msg-static"
    """virtio-msg over one static shared region and one static event channel."""
    MSG_ARGO = "msg-argo"


@dataclass(frozen=True, slots=True)
class Region:
    """Static shared memory; `address` is guest-physical in the domain the plan is for."""

    id: str
    address: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Channel:
    """A static event channel; `port` is this domain's end."""

    name: str
    port: EventPort
    peer: str
    peer_port: RemotePort


@dataclass(frozen=True, slots=True)
class PlannedDevice:
    """One virtio device that this domain has, or serves."""

    name: str
    type: DeviceType
    role: Role
    peer: str
    devid: int
    transport: Transport
    base: int = 0
    irq: Spi = _NO_SPI
    grants: bool = False
    region: str = ""
    channel: str = ""
    argo_port: int = 0


@dataclass(frozen=True, slots=True)
class Plan:
    """All that one domain knows of the system."""

    name: str
    domid: DomId
    generation: str
    domains: Mapping[str, DomId]
    regions: tuple[Region, ...] = ()
    channels: tuple[Channel, ...] = ()
    devices: tuple[PlannedDevice, ...] = ()

    def region(self, identifier: str) -> Region:
        """Raises KeyError when there is none of that id."""
        for region in self.regions:
            if region.id == identifier:
                return region
        raise KeyError(identifier)

    def channel(self, name: str) -> Channel:
        """Raises KeyError when there is none of that name."""
        for channel in self.channels:
            if channel.name == name:
                return channel
        raise KeyError(name)

    def device(self, name: str) -> PlannedDevice:
        """Raises KeyError when there is none of that name."""
        for device in self.devices:
            if device.name == name:
                return device
        raise KeyError(name)


def load_plan(path: Path = DEFAULT_PLAN) -> Plan:
    """Read a plan.

    Raises:
        ConfigurationError: unreadable, or a key or value that is not allowed.
    """
    try:
        table = load_toml(path)
    except ConfigurationError as error:
        if not isinstance(error.__cause__, FileNotFoundError):
            raise
        remedy = "`xenvirtio static build` writes one for each domain; put this domain's here, or give --plan FILE"
        raise ConfigurationError(str(path), "there is no such plan", remedy) from error
    return _plan(table)


def parse_plan(text: str, source: str = "plan.toml") -> Plan:
    """Parse a plan; raises as `load_plan`."""
    return _plan(parse_toml(text, source))


def encode_plan(plan: Plan) -> str:
    """Write a plan as TOML that `parse_plan` gives back."""
    lines = [
        f"format = {PLAN_FORMAT}",
        f"name = {toml_text(plan.name)}",
        f"domid = {plan.domid}",
        f"generation = {toml_text(plan.generation)}",
        "",
        "[domains]",
        *(f"{toml_text(name)} = {domid}" for name, domid in plan.domains.items()),
    ]
    for region in plan.regions:
        lines += ["", "[[region]]", f"id = {toml_text(region.id)}", f"address = {region.address:#x}"]
        lines.append(f"size = {region.size_bytes:#x}")
    for channel in plan.channels:
        lines += ["", "[[channel]]", f"name = {toml_text(channel.name)}", f"port = {channel.port}"]
        lines += [f"peer = {toml_text(channel.peer)}", f"peer_port = {channel.peer_port}"]
    for device in plan.devices:
        lines += ["", "[[device]]", *_device_lines(device)]
    return "\n".join(lines) + "\n"


def _device_lines(device: PlannedDevice) -> list[str]:
    lines = [
        f"name = {toml_text(device.name)}",
        f"type = {toml_text(device.type.name.lower())}",
        f"role = {toml_text(device.role.value)}",
        f"peer = {toml_text(device.peer)}",
        f"devid = {device.devid}",
        f"transport = {toml_text(device.transport.value)}",
    ]
    match device.transport:
        case Transport.MMIO:
            lines += [f"base = {device.base:#x}", f"irq = {device.irq}", f"grants = {str(device.grants).lower()}"]
        case Transport.MSG_STATIC:
            lines += [f"region = {toml_text(device.region)}", f"channel = {toml_text(device.channel)}"]
        case Transport.MSG_ARGO:
            lines.append(f"argo_port = {device.argo_port:#x}")
    return lines


def _plan(top: Table) -> Plan:
    top.need("format", int, check=between(PLAN_FORMAT, PLAN_FORMAT))
    names = top.table("domains")
    if names is None:
        raise ConfigurationError(top.where, "table 'domains' is missing", "it gives every domain's domid by name")
    domains = {name: DomId(names.need(name, int, check=between(0, DOMID_MAX))) for name in names.keys_present()}
    plan = Plan(
        name=top.need("name", str, check=one_of(domains)),
        domid=DomId(top.need("domid", int, check=between(0, DOMID_MAX))),
        generation=top.need("generation", str),
        domains=domains,
        regions=tuple(_region(table) for table in top.tables("region")),
        channels=tuple(_channel(table, domains) for table in top.tables("channel")),
        devices=tuple(_device(table, domains) for table in top.tables("device")),
    )
    top.finish()
    if domains[plan.name] != plan.domid:
        raise ConfigurationError(
            f"{top.where}: domid", f"found {plan.domid}", f"allowed: {domains[plan.name]}, as domains.{plan.name} says"
        )
    for device in plan.devices:
        _check_references(plan, device, top.where)
    return plan


def _region(table: Table) -> Region:
    region = Region(
        id=table.need("id", str),
        address=table.need("address", int, check=between(0, ADDRESS_MAX)),
        size_bytes=table.need("size", int, check=between(1, ADDRESS_MAX)),
    )
    table.finish()
    return region


def _channel(table: Table, domains: Mapping[str, DomId]) -> Channel:
    channel = Channel(
        name=table.need("name", str),
        port=EventPort(table.need("port", int, check=between(1, PORT_MAX))),
        peer=table.need("peer", str, check=one_of(domains)),
        peer_port=RemotePort(table.need("peer_port", int, check=between(1, PORT_MAX))),
    )
    table.finish()
    return channel


def _device(table: Table, domains: Mapping[str, DomId]) -> PlannedDevice:
    transport = Transport(table.need("transport", str, check=one_of(t.value for t in Transport)))
    is_mmio, is_static = transport is Transport.MMIO, transport is Transport.MSG_STATIC
    device = PlannedDevice(
        name=table.need("name", str),
        type=DeviceType[table.need("type", str, check=one_of(t.name.lower() for t in DeviceType)).upper()],
        role=Role(table.need("role", str, check=one_of(role.value for role in Role))),
        peer=table.need("peer", str, check=one_of(domains)),
        devid=table.need("devid", int, check=between(0, (1 << 29) - 1)),
        transport=transport,
        base=table.need("base", int, check=between(1, ADDRESS_MAX)) if is_mmio else 0,
        irq=Spi(table.need("irq", int, check=between(SPI_FIRST, SPI_LAST)) if is_mmio else 0),
        grants=table.need("grants", bool) if is_mmio else False,
        region=table.need("region", str) if is_static else "",
        channel=table.need("channel", str) if is_static else "",
        argo_port=table.need("argo_port", int, check=between(0, ARGO_PORT_MAX))
        if transport is Transport.MSG_ARGO
        else 0,
    )
    table.finish()
    return device


def _check_references(plan: Plan, device: PlannedDevice, source: str) -> None:
    if device.transport is not Transport.MSG_STATIC:
        return
    for key, found, known in (
        ("region", device.region, [region.id for region in plan.regions]),
        ("channel", device.channel, [channel.name for channel in plan.channels]),
    ):
        if found not in known:
            allowed = ", ".join(known) or f"none, there is no [[{key}]]"
            where = f"{source}: device {device.name!r}: {key}"
            raise ConfigurationError(where, f"found {found!r}", f"allowed: {allowed}")
