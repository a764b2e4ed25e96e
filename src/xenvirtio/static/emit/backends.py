"""`backends.toml` for `xenvirtio serve` in dom0: an entry for each virtio-mmio device that dom0 serves."""

from __future__ import annotations

from collections.abc import Container
from collections.abc import Set as AbstractSet

from xenvirtio.static.description import DOM0, Setting
from xenvirtio.static.plan import Transport
from xenvirtio.static.system import System, SystemDevice
from xenvirtio.toml_table import toml_text
from xenvirtio.virtio.device import DeviceType

_HEADER = """\
# For dom0: xenvirtio serve backends.toml, or xenvirtio control --serve backends.toml
# The guest's name is the domain's, as xenvirtio control gives it; init-dom0less calls the same domain dom0less-N.
"""


def backends_file(system: System, served: Container[DeviceType]) -> str:
    """The file's text; devices of types that are not in `served` are comments."""
    lines = [_HEADER.rstrip("\n")]
    for device in system.devices:
        if device.transport is Transport.MMIO and device.backend == DOM0:
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
