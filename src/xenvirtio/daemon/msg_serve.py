"""Serves the virtio-msg devices of a plan: one thread for each bus, until it is told to stop."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from xenvirtio.daemon.configuration import load_configuration
from xenvirtio.daemon.msg_plan import find_bus, message_buses
from xenvirtio.daemon.msg_service import BusService
from xenvirtio.devices.block.device import BlockDevice
from xenvirtio.errors import ConfigurationError, XenvirtioError
from xenvirtio.resources.file import open_disk
from xenvirtio.static.plan import Plan, PlannedDevice, Role
from xenvirtio.virtio.device import Device, DeviceType
from xenvirtio.xen.capabilities import Hypervisor

log = logging.getLogger("xenvirtio.msg")

LOOK_S = 1.0
"""How often it is looked whether a bus is left to serve."""


@dataclass(frozen=True, slots=True)
class Disk:
    """What stands behind one device."""

    path: Path
    read_only: bool = False
    serial: str = ""
    queues: int = 1
    queue_size: int = 256

    def open(self) -> Device:
        # no O_DIRECT: memory that /dev/mem or UIO shows cannot be pinned
        disk = open_disk(self.path, read_only=self.read_only)
        try:
            return BlockDevice(disk, serial=self.serial, queues=self.queues, queue_size=self.queue_size)
        except BaseException:
            disk.close()
            raise


def choose_devices(
    plan: Plan, name: str | None, file: Path | None, *, read_only: bool = False, config: Path | None = None
) -> dict[str, Disk]:
    """Say what to serve, by the device's name in the plan: one with `file`, or all that `config` has an entry for.

    Raises:
        ConfigurationError: the plan has no such device, or nothing says what stands behind one.
    """
    if (file is None) == (config is None):
        raise ConfigurationError("msg serve", "what stands behind the devices?", "give either --file or --config")
    if file is not None:
        if name is None:
            raise ConfigurationError("msg serve", "--file without a device", "give the NAME of a device in the plan")
        _, device = find_bus(plan, Role.BACKEND, name)
        return {_block(device).name: Disk(file, read_only)}
    assert config is not None
    devices = [device for bus in message_buses(plan, Role.BACKEND) for device in bus.devices]
    if name is not None:
        devices = [find_bus(plan, Role.BACKEND, name)[1]]
    if not devices:
        raise ConfigurationError("msg serve", f"{plan.name} serves no device over messages", "look into the plan")
    return {device.name: _configured(_block(device), config) for device in devices}


def _block(device: PlannedDevice) -> PlannedDevice:
    if device.type is not DeviceType.BLOCK:
        kind = device.type.name.lower()
        raise ConfigurationError(f"device {device.name!r}: type", f"found {kind!r}", "allowed: block, so far")
    return device


def _configured(device: PlannedDevice, config: Path) -> Disk:
    settings = load_configuration(config).find(device.peer, "", device.type, device.devid)
    if settings is None:
        what = f"{device.type.name.lower()} {device.devid} of guest {device.peer!r}"
        raise ConfigurationError(str(config), f"no [[device]] for {what}", "add one")
    if settings.resource.direct:
        raise ConfigurationError(
            f"{config}: resource of guest {device.peer!r}", "direct = true", "static shared memory has no direct I/O"
        )
    path = settings.resource.path_for(device.peer)
    return Disk(path, settings.resource.read_only, settings.serial, settings.queues, settings.queue_size)


class MessageServer:
    """All buses of `plan` that have a device in `disks`, opened by the constructor.

    Raises:
        ConfigurationError, HypervisorError, ResourceError: a disk or a carrier cannot be opened; nothing stays open.
    """

    def __init__(self, hypervisor: Hypervisor, plan: Plan, disks: Mapping[str, Disk], *, how: str = "auto") -> None:
        self._stopped = threading.Event()
        self._services: list[BusService] = []
        try:
            for bus in message_buses(plan, Role.BACKEND):
                served = [device for device in bus.devices if device.name in disks]
                if not served:
                    continue
                carrier = bus.open(hypervisor, how=how)
                service = BusService(carrier, bus.name)
                self._services.append(service)
                for device in served:
                    service.add(device.name, disks[device.name].open(), device.devid)
                names = ", ".join(f"{device.name} ({disks[device.name].path})" for device in served)
                log.info("serving %s to %s over %s", names, served[0].peer, carrier.description)
        except BaseException:
            self._close()
            raise

    def run(self) -> None:
        """Serve until `stop`, or until no bus is left: one whose carrier fails ends alone.

        Raises:
            XenvirtioError: what ended the first bus that did not last.
        """
        for service in self._services:
            service.start()
        log.info("ready")
        while not self._stopped.wait(LOOK_S) and any(service.is_running for service in self._services):
            pass
        self._close()
        log.info("ended")

    def stop(self) -> None:
        """Have `run` return; from a signal handler or another thread."""
        self._stopped.set()

    def _close(self) -> None:
        problem: XenvirtioError | None = None
        while self._services:
            try:
                self._services.pop(0).close()
            except XenvirtioError as error:
                problem = problem or error
        if problem is not None:
            raise problem
