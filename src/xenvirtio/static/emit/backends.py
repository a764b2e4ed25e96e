"""`backends.toml`: what stands behind the devices that a domain serves.

dom0 gives it to `xenvirtio serve` (virtio-mmio), every domain to `xenvirtio msg serve --config` (messages).
"""

from __future__ import annotations

from collections.abc import Container
from collections.abc import Set as AbstractSet

from xenvirtio.static.description import Setting
from xenvirtio.static.system import System, SystemDevice
from xenvirtio.toml_table import toml_text
from xenvirtio.virtio.device import DeviceType

BACKENDS_FILE = "/etc/xenvirtio/backends.toml"
"""Where it goes in the domain."""

_HEADER = """\
# For xenvirtio serve, xenvirtio control --serve and xenvirtio msg serve --config.
# A guest's name is the domain's in the plan, which xenvirtio control gives it; init-dom0less calls it dom0less-N.
"""


def serves(system: System, domain: str) -> bool:
    """Whether the domain is the backend of anything."""
    return any(device.backend == domain for device in system.devices)


def backends_file(system: System, domain: str, served: Container[DeviceType]) -> str:
    """The domain's file; devices of types that are not in `served` are comments."""
    lines = [_HEADER.rstrip("\n")]
    for device in system.devices:
        if device.backend == domain:
            entry = _entry(device)
            lines += ["", *(entry if device.type in served and device.resource else _as_comment(device, entry))]
    return "\n".join(lines) + "\n"


def _entry(device: SystemDevice) -> list[str]:
    resource = ", ".join(f"{_key(key)} = {_value(value)}" for key, value in device.resource.items())
    lines = [
        "[[device]]",
        f"guest = {toml_text(device.frontend)}",
        f"type = {toml_text(device.type.name.lower())}",
        f"devid = {device.devid}",
    ]
    lines += [f"resource = {{ {resource} }}"] if resource else []
    return lines + [f"{_key(key)} = {_value(value)}" for key, value in device.settings.items()]


def _as_comment(device: SystemDevice, entry: list[str]) -> list[str]:
    reason = "has no resource" if not device.resource else "is of a type that this version does not serve"
    return [f"# {device.name} {reason}:", *(f"# {line}" for line in entry)]


_BARE: AbstractSet[str] = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")


def _key(key: str) -> str:
    return key if key and set(key) <= _BARE else toml_text(key)


def _value(value: Setting) -> str:
    if isinstance(value, str):
        return toml_text(value)
    return str(value).lower()
