"""backends.toml: which guests get which resources for which device.

    [daemon]                          # optional, all keys too
    state_dir = "/run/xenvirtio"
    serve_disks = true                # serve disk=[... specification=virtio] entries, whose file XenStore names
    indirect_with_grants = true       # offer indirect descriptors where grants are used: one more copy call a batch

    [[device]]
    guest = "domu-*"                  # name or UUID, shell patterns allowed
    type = "block"
    devid = 0                         # optional: its number in XenStore, for virtio=[...] the position in that list
    resource = { file = "/srv/{guest}.img", read_only = false, direct = false }
    serial = "data"                   # optional, up to 20 characters
    queues = 1                        # optional

Every wrong key or value is a ConfigurationError that names the place, what was found and what is allowed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from xenvirtio.errors import ConfigurationError
from xenvirtio.toml_table import Table, between, load_toml, one_of
from xenvirtio.virtio.device import DeviceType

DEFAULT_STATE_DIR = Path("/run/xenvirtio")
SERVED_TYPES = {"block": DeviceType.BLOCK}
SERIAL_MAX = 20
QUEUES_MAX = 16
DEVID_MAX = (1 << 29) - 1
"""Disks are numbered by their vdev: xvda is 51712, the largest form is 1 << 28 and more."""
QUEUE_SIZE_MIN = 4
QUEUE_SIZE_MAX = 1024


@dataclass(frozen=True, slots=True)
class FileResourceSettings:
    """A disk image or block device; `{guest}` in the path stands for the guest's name."""

    file: str
    read_only: bool = False
    direct: bool = False

    def path_for(self, guest: str) -> Path:
        return Path(self.file.replace("{guest}", guest))


@dataclass(frozen=True, slots=True)
class DeviceSettings:
    guest: str
    type: DeviceType
    resource: FileResourceSettings
    devid: int | None = None
    serial: str = ""
    queues: int = 1
    queue_size: int = 256

    def matches(self, name: str, uuid: str) -> bool:
        return fnmatchcase(name, self.guest) or fnmatchcase(uuid, self.guest)


@dataclass(frozen=True, slots=True)
class DaemonSettings:
    state_dir: Path = DEFAULT_STATE_DIR
    serve_disks: bool = True
    indirect_with_grants: bool = True


@dataclass(frozen=True, slots=True)
class Configuration:
    daemon: DaemonSettings = field(default_factory=DaemonSettings)
    devices: tuple[DeviceSettings, ...] = ()

    def find(self, name: str, uuid: str, device_type: DeviceType, devid: int) -> DeviceSettings | None:
        """Return the first entry for a device of the guest, or None."""
        for device in self.devices:
            if device.type == device_type and device.devid in (None, devid) and device.matches(name, uuid):
                return device
        return None


def load_configuration(path: Path) -> Configuration:
    """Read and check a configuration file.

    Raises:
        ConfigurationError: unreadable, not TOML, or a key or value that is not allowed.
    """
    return _configuration(load_toml(path))


def parse_configuration(document: dict[str, Any], source: str) -> Configuration:
    return _configuration(Table(document, source))


def _configuration(top: Table) -> Configuration:
    daemon = top.table("daemon")
    settings = DaemonSettings()
    if daemon is not None:
        settings = DaemonSettings(
            state_dir=Path(daemon.get("state_dir", str, str(settings.state_dir), check=_absolute)),
            serve_disks=daemon.get("serve_disks", bool, settings.serve_disks),
            indirect_with_grants=daemon.get("indirect_with_grants", bool, settings.indirect_with_grants),
        )
        daemon.finish()
    devices = tuple(_device(table) for table in top.tables("device"))
    top.finish()
    return Configuration(settings, devices)


def _device(table: Table) -> DeviceSettings:
    type_name = table.need("type", str, check=one_of(SERVED_TYPES))
    resource = table.table("resource")
    if resource is None:
        example = 'for example resource = { file = "/srv/d.img" }'
        raise ConfigurationError(table.where, "key 'resource' is missing", example)
    device = DeviceSettings(
        guest=table.need("guest", str, check=_not_empty),
        type=SERVED_TYPES[type_name],
        resource=FileResourceSettings(
            file=resource.need("file", str, check=_absolute),
            read_only=resource.get("read_only", bool, False),
            direct=resource.get("direct", bool, False),
        ),
        devid=table.optional("devid", int, check=between(0, DEVID_MAX)),
        serial=table.get("serial", str, "", check=_serial),
        queues=table.get("queues", int, 1, check=between(1, QUEUES_MAX)),
        queue_size=table.get("queue_size", int, 256, check=_queue_size),
    )
    resource.finish()
    table.finish()
    return device


def _absolute(value: str) -> str | None:
    return None if value.startswith("/") and "\0" not in value else "an absolute path"


def _not_empty(value: str) -> str | None:
    return None if value else "a guest name, a UUID or a pattern such as \"domu-*\""


def _serial(value: str) -> str | None:
    valid = value.isascii() and "\0" not in value and len(value) <= SERIAL_MAX
    return None if valid else f"at most {SERIAL_MAX} ASCII characters"


def _queue_size(value: int) -> str | None:
    valid = QUEUE_SIZE_MIN <= value <= QUEUE_SIZE_MAX and value & (value - 1) == 0
    return None if valid else f"a power of two from {QUEUE_SIZE_MIN} to {QUEUE_SIZE_MAX}"
