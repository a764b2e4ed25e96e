"""The toolstack's description of a virtio device in XenStore, both layouts, parsed and checked.

    kind `virtio`       virtio=["type=virtio,device<hex>, transport=mmio, ..."]   base in hex
    kind `virtio_disk`  disk=["..., specification=virtio"]                        base in decimal, params names the disk

Source: xen tools/libs/light/libxl_virtio.c, libxl_disk.c, libxl_device.c.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum

from xenvirtio.errors import ConfigurationError
from xenvirtio.ids import DomId
from xenvirtio.virtio.device import DeviceType

KINDS = ("virtio", "virtio_disk")
WINDOW_BYTES = 0x200
"""Register window of one virtio-mmio slot (xen/include/public/arch-arm.h via libxl_arm.c, VIRTIO_MMIO_DEV_SIZE)."""


SPI_FIRST, SPI_LAST = 32, 1019
"""The GIC's shared interrupts, the only ones that Xen lets a device model raise (xen/arch/arm/dm.c)."""


class XenbusState(IntEnum):
    """Source: xen/include/public/io/xenbus.h."""

    UNKNOWN = 0
    INITIALISING = 1
    INIT_WAIT = 2
    INITIALISED = 3
    CONNECTED = 4
    CLOSING = 5
    CLOSED = 6


@dataclass(frozen=True, slots=True)
class EntryPath:
    """Where a device's backend directory is: `<root>/<kind>/<frontend domid>/<devid>`."""

    root: str
    kind: str
    domid: DomId
    devid: int

    def __str__(self) -> str:
        return f"{self.root}/{self.kind}/{self.domid}/{self.devid}"


@dataclass(frozen=True, slots=True)
class BackendEntry:
    """One device as the toolstack wants it. `base` is guest-physical, `irq` a GIC INTID."""

    path: EntryPath
    base: int
    irq: int
    device_type: DeviceType
    params: str | None
    read_only: bool
    uses_grants: bool
    """What the toolstack told the guest. Only a hint: how an address is reached, the address itself says."""


def parse_entry(path: EntryPath, keys: Mapping[str, str]) -> BackendEntry:
    """Make sense of a backend directory's keys.

    Raises:
        ConfigurationError: one line that names the directory, what is wrong with it and the way out.
    """
    where = str(path)
    transport = keys.get("transport", "mmio")
    if transport != "mmio":
        raise ConfigurationError(
            where, f"transport is {transport!r}", 'write transport=mmio in the guest\'s virtio=[...] entry'
        )
    base = _number(where, keys, "base")
    irq = _number(where, keys, "irq")
    if base == 0 or irq == 0:
        raise ConfigurationError(
            where,
            f"no MMIO window was assigned (base {base:#x}, irq {irq})",
            "on Arm write transport=mmio in the guest's virtio=[...] entry; on x86 xl assigns none",
        )
    if base % WINDOW_BYTES:
        raise ConfigurationError(where, f"base {base:#x} is not a multiple of {WINDOW_BYTES:#x}")
    if not SPI_FIRST <= irq <= SPI_LAST:
        raise ConfigurationError(where, f"irq {irq} is not a shared interrupt", f"allowed: {SPI_FIRST} to {SPI_LAST}")
    if "\0" in keys.get("params", ""):
        raise ConfigurationError(where, f"params is {keys['params']!r}, not a path")
    return BackendEntry(
        path=path,
        base=base,
        irq=irq,
        device_type=_device_type(where, path.kind, keys.get("type", "")),
        params=keys.get("params") or None,
        read_only=keys.get("mode", "w") == "r",
        uses_grants=keys.get("grant_usage", "0") == "1",
    )


def _number(where: str, keys: Mapping[str, str], key: str) -> int:
    text = keys.get(key)
    if text is None:
        raise ConfigurationError(where, f"key {key!r} is missing", "let xl write it, or write base and irq by hand")
    try:
        value = int(text, 0)
    except ValueError:
        raise ConfigurationError(where, f"{key} is {text!r}, not a number") from None
    if not 0 <= value < 1 << 48:
        raise ConfigurationError(where, f"{key} is {text!r}, out of range")
    return value


def _device_type(where: str, kind: str, text: str) -> DeviceType:
    if kind == "virtio_disk":
        return DeviceType.BLOCK
    prefix, _, digits = text.partition("virtio,device")
    known = ", ".join(f"virtio,device{t:x} ({t.name.lower()})" for t in DeviceType)
    try:
        if prefix or not digits:
            raise ValueError
        return DeviceType(int(digits, 16))
    except ValueError:
        raise ConfigurationError(where, f"unknown device type {text!r}", f"known: {known}") from None
