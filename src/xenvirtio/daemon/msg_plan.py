"""The virtio-msg buses of a plan, and how each is opened."""

from __future__ import annotations

from dataclasses import dataclass

from xenvirtio.daemon.msg_argo import ArgoCarrier
from xenvirtio.daemon.msg_carrier import Carrier, StaticCarrier
from xenvirtio.errors import ConfigurationError
from xenvirtio.ids import ArgoPort
from xenvirtio.static.plan import Plan, PlannedDevice, Role, Transport
from xenvirtio.virtio.transports import msg_region
from xenvirtio.virtio.transports.msg_layout import DEVICE_NUMBERS
from xenvirtio.xen.capabilities import Hypervisor

MESSAGE_TRANSPORTS = (Transport.MSG_STATIC, Transport.MSG_ARGO)


@dataclass(frozen=True, slots=True)
class PlannedBus:
    """Devices that share a carrier: one region and channel, or one Argo port with one domain."""

    plan: Plan
    role: Role
    devices: tuple[PlannedDevice, ...]

    @property
    def name(self) -> str:
        return "+".join(device.name for device in self.devices)

    def open(self, hypervisor: Hypervisor, *, how: str = "auto") -> Carrier:
        """Open this domain's end; raises as the carriers do."""
        first = self.devices[0]
        if first.transport is Transport.MSG_ARGO:
            return ArgoCarrier(hypervisor, self.plan.domains[first.peer], ArgoPort(first.argo_port))
        region, channel = self.plan.region(first.region), self.plan.channel(first.channel)
        role = msg_region.Role.DEVICE if self.role is Role.BACKEND else msg_region.Role.DRIVER
        return StaticCarrier(hypervisor, region, channel, role, how=how)


def message_buses(plan: Plan, role: Role) -> list[PlannedBus]:
    """The buses on which this domain plays `role`.

    Raises:
        ConfigurationError: two devices of a bus have one number, a number is too large, or two buses share a resource.
    """
    groups: dict[tuple[object, ...], list[PlannedDevice]] = {}
    owners: dict[object, PlannedDevice] = {}
    for device in plan.devices:
        if device.role is not role or device.transport not in MESSAGE_TRANSPORTS:
            continue
        key = (device.peer, device.region, device.channel, device.argo_port)
        for resource in (("region", device.region), ("channel", device.channel)):
            other = owners.setdefault(resource, device)
            if resource[1] and (other.peer, other.region, other.channel) != key[:3]:
                raise ConfigurationError(
                    f"device {device.name!r}: {resource[0]}",
                    f"found {resource[1]!r}, which {other.name!r} uses in another way",
                    "devices share peer, region and channel, or none of them",
                )
        numbers = groups.setdefault(key, [])
        if device.devid >= DEVICE_NUMBERS:
            raise ConfigurationError(f"device {device.name!r}: devid", f"found {device.devid}", "allowed: up to 65535")
        if any(other.devid == device.devid for other in numbers):
            raise ConfigurationError(
                f"device {device.name!r}: devid", f"found {device.devid} a second time", "one for each device of a bus"
            )
        numbers.append(device)
    return [PlannedBus(plan, role, tuple(devices)) for devices in groups.values()]


def find_bus(plan: Plan, role: Role, name: str) -> tuple[PlannedBus, PlannedDevice]:
    """Find the bus that has device `name`.

    Raises:
        ConfigurationError: no such device, or not one that this domain reaches by messages in that role.
    """
    buses = message_buses(plan, role)
    for bus in buses:
        for device in bus.devices:
            if device.name == name:
                return bus, device
    known = ", ".join(device.name for bus in buses for device in bus.devices) or "none in this plan"
    what = "serves" if role is Role.BACKEND else "uses"
    problem = f"no device that {plan.name} {what} over messages"
    raise ConfigurationError(f"device {name!r}", problem, f"allowed: {known}")
