"""Turns what XenStore and the configuration say of a device into the device itself: the one place that knows all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from xenvirtio.daemon.configuration import Configuration, DeviceSettings
from xenvirtio.daemon.entries import BackendEntry
from xenvirtio.daemon.guest import GuestIdentity
from xenvirtio.devices.block.device import BlockDevice
from xenvirtio.errors import ConfigurationError
from xenvirtio.resources.file import open_disk
from xenvirtio.virtio import features as feature
from xenvirtio.virtio.device import Device, DeviceType
from xenvirtio.virtio.transports.lifecycle import TRANSPORT_FEATURES


class DeviceFactory:
    """Plans devices by configuration; a plan opens its resource only when it is made."""

    @dataclass(frozen=True, slots=True)
    class Plan:
        make: Callable[[], Device]
        transport_features: int

    def __init__(self, configuration: Configuration) -> None:
        self._configuration = configuration

    def serves(self, entry: BackendEntry) -> bool:
        """Say whether devices of this kind and type are ours to serve; others belong to other backends."""
        if entry.path.kind == "virtio_disk":
            return self._configuration.daemon.serve_disks
        return entry.device_type == DeviceType.BLOCK

    def plan(self, identity: GuestIdentity, entry: BackendEntry) -> Plan | None:
        """Return how to make the device, or None when another backend is meant to serve it.

        Raises:
            ConfigurationError: nothing says what stands behind the device.
        """
        if not self.serves(entry):
            return None
        settings = self._configuration.find(identity.name, identity.uuid, entry.device_type, entry.path.devid)
        if entry.path.kind == "virtio_disk":
            return self._block_plan(entry, self._disk_path(identity, entry, settings), entry.read_only, settings)
        if settings is None:
            raise ConfigurationError(
                str(entry.path),
                f"no [[device]] entry for {entry.device_type.name.lower()} in guest {identity}",
                "add one to the configuration and send SIGHUP",
            )
        path = self._configured_path(identity, entry, settings)
        return self._block_plan(entry, path, entry.read_only or settings.resource.read_only, settings)

    @staticmethod
    def _configured_path(identity: GuestIdentity, entry: BackendEntry, settings: DeviceSettings) -> Path:
        """Who names a guest must not thereby choose a file in another directory."""
        name = identity.name
        if "{guest}" in settings.resource.file and (not name or "/" in name or "\0" in name):
            raise ConfigurationError(
                str(entry.path),
                f"the guest's name {name!r} cannot stand for {{guest}} in the path of its image",
                "rename the guest, or write its path out",
            )
        return settings.resource.path_for(name)

    @classmethod
    def _disk_path(cls, identity: GuestIdentity, entry: BackendEntry, settings: DeviceSettings | None) -> Path:
        if entry.params:
            return Path(entry.params)
        if settings is not None:
            return cls._configured_path(identity, entry, settings)
        remedy = "give the disk a target= in the guest's disk=[...]"
        raise ConfigurationError(str(entry.path), "key 'params' is missing", remedy)

    def _block_plan(self, entry: BackendEntry, path: Path, read_only: bool, settings: DeviceSettings | None) -> Plan:
        direct = settings.resource.direct if settings else False

        def make() -> Device:
            disk = open_disk(path, read_only=read_only, direct=direct)
            try:
                return BlockDevice(
                    disk,
                    serial=settings.serial if settings else "",
                    queues=settings.queues if settings else 1,
                    queue_size=settings.queue_size if settings else 256,
                )
            except BaseException:
                disk.close()
                raise

        offered = TRANSPORT_FEATURES
        if entry.uses_grants and not self._configuration.daemon.indirect_with_grants:
            offered &= ~feature.RING_INDIRECT_DESC
        return DeviceFactory.Plan(make, offered)
