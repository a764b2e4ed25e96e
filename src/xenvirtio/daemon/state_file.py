"""What a successor process needs to take a guest over: which IOREQ server, which devices, their registers.

One file per guest in a tmpfs directory, mapped shared: a store into it survives kill -9 of this process without any
system call, and the registers page of each device *is* its transport's state. A reboot of the host clears it, as it
clears the domains.

Layout, little-endian, pages of 4096 bytes: page 0 is the header (`_Header`), page 1 + n the registers of slot n.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from dataclasses import dataclass
from pathlib import Path

from xenvirtio.errors import ResourceError
from xenvirtio.ids import PAGE_SIZE, DomId, ServerId

MAGIC = b"XVSTATE1"
DEVICE_SLOTS = 16
"""Xen's toolstack gives a guest at most 11 virtio-mmio windows (xen/include/public/arch-arm.h, SPIs 33 to 43)."""

NO_SERVER = 0xFFFFFFFF
IDENTITY_BYTES = 64
FILE_BYTES = PAGE_SIZE * (1 + DEVICE_SLOTS)


class _Slot(ctypes.LittleEndianStructure):
    _fields_ = [
        ("used", ctypes.c_uint32),
        ("irq", ctypes.c_uint32),
        ("base", ctypes.c_uint64),
        ("type", ctypes.c_uint32),
        ("devid", ctypes.c_uint32),
        ("kind", ctypes.c_char * 24),
    ]


class _Header(ctypes.LittleEndianStructure):
    _fields_ = [
        ("magic", ctypes.c_char * 8),
        ("domid", ctypes.c_uint32),
        ("server", ctypes.c_uint32),
        ("identity", ctypes.c_char * IDENTITY_BYTES),
        ("slots", _Slot * DEVICE_SLOTS),
    ]


@dataclass(frozen=True, slots=True)
class DeviceKey:
    """Which device of the guest: the XenStore kind (`virtio`, `virtio_disk`), its devid, and where it sits."""

    kind: str
    devid: int
    type: int
    base: int
    irq: int


class GuestState:
    """The mapped state file of one guest. `identity` (a UUID) tells this guest from a later one with its domid."""

    def __init__(self, path: Path, domid: DomId, identity: str) -> None:
        self.path = path
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                os.ftruncate(descriptor, FILE_BYTES)
                os.posix_fallocate(descriptor, 0, FILE_BYTES)  # a store into a full tmpfs would be SIGBUS
                self._map = mmap.mmap(descriptor, FILE_BYTES)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise ResourceError(f"{path}: {error.strerror}") from error
        # a domain name or UUID comes from XenStore, where it may be any bytes of any length
        owner = identity.encode("utf-8", "surrogateescape").partition(b"\0")[0][:IDENTITY_BYTES]
        self._header = _Header.from_buffer(self._map)
        self._anchor = ctypes.c_char.from_buffer(self._map)
        same = (self._header.magic, self._header.domid, self._header.identity) == (MAGIC, domid, owner)
        self.inherited = same and self._header.server != NO_SERVER
        if not same:
            ctypes.memset(ctypes.addressof(self._anchor), 0, FILE_BYTES)
            self._header.server = NO_SERVER
            self._header.domid = domid
            self._header.identity = owner
            self._header.magic = MAGIC

    @property
    def server(self) -> ServerId | None:
        return None if self._header.server == NO_SERVER else ServerId(self._header.server)

    @server.setter
    def server(self, server: ServerId | None) -> None:
        self._header.server = NO_SERVER if server is None else server

    def find(self, key: DeviceKey) -> int | None:
        """Return the slot that a predecessor filled for exactly this device."""
        for number, slot in enumerate(self._header.slots):
            if slot.used and _key_of(slot) == key:
                return number
        return None

    def claim(self, key: DeviceKey) -> int:
        """Take a free slot for a new device, its registers zeroed.

        Raises:
            ResourceError: the guest has more devices than a guest can have.
        """
        for number, slot in enumerate(self._header.slots):
            if not slot.used:
                ctypes.memset(self.registers_address(number), 0, PAGE_SIZE)
                slot.kind, slot.devid, slot.type = key.kind.encode(), key.devid, key.type
                slot.base, slot.irq = key.base, key.irq
                slot.used = 1
                return number
        raise ResourceError(f"{self.path}: more than {DEVICE_SLOTS} devices in one guest")

    def release(self, number: int) -> None:
        self._header.slots[number].used = 0

    def forget_devices(self) -> None:
        """Free all slots: the server that they were for is gone, and later ones must not be mistaken for them."""
        for slot in self._header.slots:
            slot.used = 0

    def recorded(self) -> list[DeviceKey]:
        """The devices on record."""
        return [_key_of(slot) for slot in self._header.slots if slot.used]

    def registers_address(self, number: int) -> int:
        """Host address of the registers page of slot `number`, valid until `close`."""
        return ctypes.addressof(self._anchor) + PAGE_SIZE * (1 + number)

    def close(self) -> None:
        """Unmap. Every transport over these registers must be closed."""
        if not self._map.closed:
            del self._header, self._anchor
            self._map.close()

    def remove(self) -> None:
        """Unmap and delete: the guest is gone."""
        self.close()
        self.path.unlink(missing_ok=True)


def _key_of(slot: _Slot) -> DeviceKey:
    return DeviceKey(slot.kind.decode("ascii", "replace"), slot.devid, slot.type, slot.base, slot.irq)
