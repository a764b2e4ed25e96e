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

import tomllib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from xenvirtio.errors import ConfigurationError
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
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(str(path), error.strerror or str(error), "give the path of a readable file") from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(str(path), f"not UTF-8 text (byte {error.start})") from error
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(str(path), f"not TOML: {error}") from error
    return parse_configuration(document, str(path))


def parse_configuration(document: dict[str, Any], source: str) -> Configuration:
    top = _Table(document, source)
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


def _device(table: _Table) -> DeviceSettings:
    type_name = table.need("type", str, check=_one_of(SERVED_TYPES))
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
        devid=table.optional("devid", int, check=_between(0, DEVID_MAX)),
        serial=table.get("serial", str, "", check=_serial),
        queues=table.get("queues", int, 1, check=_between(1, QUEUES_MAX)),
        queue_size=table.get("queue_size", int, 256, check=_queue_size),
    )
    resource.finish()
    table.finish()
    return device


Check = Callable[[Any], str | None]
"""Returns what is allowed when the value is not, else None."""


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


def _between(low: int, high: int) -> Check:
    return lambda value: None if low <= value <= high else f"a number from {low} to {high}"


def _one_of(names: Iterable[str]) -> Check:
    allowed = tuple(names)
    return lambda value: None if value in allowed else "one of " + ", ".join(allowed)


_TYPE_NAMES = {str: "text in quotes", bool: "true or false", int: "a whole number"}
_ABSENT: Any = object()


class _Table:
    """One TOML table being read: every key is asked for once, what is left over is unknown."""

    def __init__(self, values: dict[str, Any], where: str) -> None:
        self.where = where
        self._values = values
        self._asked: list[str] = []

    def need(self, key: str, kind: type[Any], *, check: Check | None = None) -> Any:
        if key not in self._values:
            raise ConfigurationError(self.where, f"key {key!r} is missing", f"it takes {_TYPE_NAMES[kind]}")
        return self.get(key, kind, _ABSENT, check=check)

    def optional(self, key: str, kind: type[Any], *, check: Check | None = None) -> Any:
        return self.get(key, kind, None, check=check) if key in self._values else self._ask(key)

    def get(self, key: str, kind: type[Any], default: Any, *, check: Check | None = None) -> Any:
        self._ask(key)
        if key not in self._values:
            return default
        value = self._values[key]
        # bool is an int to Python, not to the person who wrote the file
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise ConfigurationError(f"{self.where}: {key}", f"found {value!r}", f"allowed: {_TYPE_NAMES[kind]}")
        allowed = check(value) if check else None
        if allowed:
            raise ConfigurationError(f"{self.where}: {key}", f"found {value!r}", f"allowed: {allowed}")
        return value

    def table(self, key: str) -> _Table | None:
        self._ask(key)
        if key not in self._values:
            return None
        value = self._values[key]
        if not isinstance(value, dict):
            raise ConfigurationError(f"{self.where}: {key}", f"found {value!r}", "allowed: a table")
        return _Table(value, f"{self.where}: {key}")

    def tables(self, key: str) -> list[_Table]:
        self._ask(key)
        value = self._values.get(key, [])
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            raise ConfigurationError(f"{self.where}: {key}", f"found {value!r}", f"allowed: tables headed [[{key}]]")
        return [_Table(item, f"{self.where}: {key}[{number}]") for number, item in enumerate(value)]

    def finish(self) -> None:
        """Refuse keys that nobody asked for."""
        for key in self._values:
            if key not in self._asked:
                raise ConfigurationError(self.where, f"unknown key {key!r}", "allowed: " + ", ".join(self._asked))

    def _ask(self, key: str) -> None:
        if key not in self._asked:
            self._asked.append(key)
