"""Creates and destroys guests as libxl does: the same XenStore nodes, the same order, the same patience.

Source: xen tools/libs/light/libxl_device.c (libxl__device_generic_add, libxl__initiate_device_generic_remove),
libxl_virtio.c, libxl_disk.c, libxl_arm.c (window and interrupt allocation).
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from xenvirtio.errors import ResourceError
from xenvirtio.ids import DomId
from xenvirtio.xen.emulated import Domain, EmulatedHost
from xenvirtio.xenstore.client import Operations, XenStoreClient

VIRTIO_MMIO_BASE = 0x0200_0000
VIRTIO_MMIO_SPI_FIRST = 33
WINDOW_BYTES = 0x200
FIRST_VDEV = 51712
"""xvda; the next whole disk is 16 further."""

STATE_INITIALISING, STATE_INIT_WAIT, STATE_CLOSING, STATE_CLOSED = 1, 2, 5, 6
PATIENCE_S = 10.0
"""How long libxl waits for a backend, at creation and at removal."""


@dataclass(frozen=True, slots=True)
class DiskConfiguration:
    """A virtio disk of a guest. Without `path` it is a `virtio=[...]` entry, whose backend knows the file itself."""

    path: Path | None
    grant_usage: bool
    read_only: bool = False
    keys: dict[str, str] = field(default_factory=dict)
    """Keys to override, for wrong entries."""


@dataclass(frozen=True, slots=True)
class CreatedDevice:
    base: int
    irq: int
    backend: str
    frontend: str
    grant_usage: bool


@dataclass(frozen=True, slots=True)
class CreatedGuest:
    name: str
    domain: Domain
    devices: tuple[CreatedDevice, ...]

    @property
    def domid(self) -> DomId:
        return self.domain.domid


class Toolstack:
    """What `xl create` and `xl destroy` do, on the emulated host."""

    def __init__(self, host: EmulatedHost, store: XenStoreClient) -> None:
        self._host = host
        self._store = store

    def create(
        self,
        name: str,
        disks: Sequence[DiskConfiguration],
        *,
        memory_bytes: int = 32 << 20,
        vcpus: int = 1,
        wait: bool = True,
    ) -> CreatedGuest:
        """Build a guest and wait until its disks' backends are ready (libxl waits for `virtio_disk` only).

        Raises:
            ResourceError: a backend was not ready after 10 s.
        """
        domain = self._host.create_domain(memory_bytes=memory_bytes, vcpus=vcpus)
        domid = domain.domid
        home = f"/local/domain/{domid}"
        self._store.write(f"{home}/name", name)
        self._store.write(f"{home}/vm", f"/vm/{uuid.uuid4()}")
        self._store.write(f"{home}/domid", str(domid))
        devices = tuple(self._add_disk(domid, number, disk) for number, disk in enumerate(disks))
        if wait:
            for device in devices:
                if not self.wait_for(lambda path=f"{device.backend}/state": self._store.read_optional(path) == "2"):  # type: ignore[misc]
                    raise ResourceError(f"no backend took {device.backend} within {PATIENCE_S:g} s")
        return CreatedGuest(name, domain, devices)

    def _add_disk(self, domid: DomId, number: int, disk: DiskConfiguration) -> CreatedDevice:
        base = VIRTIO_MMIO_BASE + number * WINDOW_BYTES
        irq = VIRTIO_MMIO_SPI_FIRST + number
        kind, devid = ("virtio", number) if disk.path is None else ("virtio_disk", FIRST_VDEV + 16 * number)
        backend = f"/local/domain/0/backend/{kind}/{domid}/{devid}"
        frontend = f"/local/domain/{domid}/device/{kind}/{devid}"
        keys = {
            "frontend": frontend,
            "frontend-id": str(domid),
            "online": "1",
            "state": str(STATE_INITIALISING),
            "irq": str(irq),
            "base": hex(base) if kind == "virtio" else str(base),
            "type": "virtio,device2" if kind == "virtio" else "standalone",
            "transport": "mmio",
            "grant_usage": str(int(disk.grant_usage)),
        }
        if disk.path is not None:
            keys |= {"params": str(disk.path), "mode": "r" if disk.read_only else "w", "specification": "virtio"}
        keys |= disk.keys

        def write(transaction: Operations) -> None:
            for key, value in keys.items():
                transaction.write(f"{backend}/{key}", value)
            transaction.set_permissions(backend, ["n0", f"r{domid}"])
            for key, value in {"backend": backend, "backend-id": "0", "state": str(STATE_INITIALISING)}.items():
                transaction.write(f"{frontend}/{key}", value)

        self._store.transact(write)
        return CreatedDevice(base, irq, backend, frontend, disk.grant_usage)

    def destroy(self, guest: CreatedGuest) -> None:
        """Remove the devices, then the domain; a backend that does not answer costs 10 s, as with libxl."""
        for device in guest.devices:
            self._start_removal(device)
        for device in guest.devices:
            self.wait_for(lambda path=f"{device.backend}/state": self._store.read_optional(path) in (None, "6"))  # type: ignore[misc]
            for path in (device.frontend, device.backend):
                if self._store.exists(path):
                    self._store.rm(path)
        self._host.destroy_domain(guest.domid)
        self._store.rm(f"/local/domain/{guest.domid}")

    def _start_removal(self, device: CreatedDevice) -> None:
        def write(transaction: Operations) -> None:
            if transaction.read_optional(f"{device.backend}/state") not in (None, str(STATE_CLOSED)):
                transaction.write(f"{device.backend}/online", "0")
                transaction.write(f"{device.backend}/state", str(STATE_CLOSING))

        self._store.transact(write)

    def is_gone(self, guest: CreatedGuest) -> bool:
        """Say whether nothing is left of the domain, not even a zombie held by somebody's mapping."""
        return self._host.domain(guest.domid) is None

    @staticmethod
    def wait_for(condition: Callable[[], bool], timeout_s: float = PATIENCE_S) -> bool:
        """Poll until `condition` holds; False when it did not in time."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.005)
        return True
