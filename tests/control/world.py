"""An emulated host with a XenStore of ours that serves rings as far as an introduction goes."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from xenvirtio.control.introducer import Introducer, OnStop
from xenvirtio.control.store_page import CONNECTION_OFFSET
from xenvirtio.ids import DomId, Gfn, GrantRef, RemotePort
from xenvirtio.static.plan import Plan, parse_plan
from xenvirtio.xen.capabilities import HvmParam, Hypervisor, XenVersion
from xenvirtio.xen.emulated import EmulatedHost
from xenvirtio.xenstore.client import XenStoreClient
from xenvirtio.xenstore.serve import XenStoreService
from xenvirtio.xenstore.server import XenStoreServer

PLAN = """
format = 1
name = "dom0"
domid = 0
generation = "g1"
[domains]
dom0 = 0
alpha = 1
beta = 2
[[device]]
name = "root"
type = "block"
role = "backend"
peer = "alpha"
devid = 0
transport = "mmio"
base = 0x2000000
irq = 33
grants = true
"""

XEN_4_20 = XenVersion(4, 20)


def plan() -> Plan:
    return parse_plan(PLAN)


class RingKeeper:
    """`DomainHost` that takes a ring over as a server does: by grant 1, with the domain's event channel."""

    def __init__(self, hypervisor: Hypervisor) -> None:
        self._hypervisor = hypervisor
        self._channels = hypervisor.open_event_channels()
        self._grants = hypervisor.open_grants()
        self.connected: dict[int, int] = {}
        """How often each domain was connected."""

    def exists(self, domid: DomId) -> bool:
        return True

    def connect(self, domid: DomId, gfn: int, port: int) -> None:
        with self._grants.map(domid, [GrantRef(1)], writable=True) as page:
            ctypes.c_uint32.from_address(page.address + CONNECTION_OFFSET).value = 0
        if domid not in self.connected:
            self._channels.bind_interdomain(domid, RemotePort(port))
        self.connected[domid] = self.connected.get(domid, 0) + 1

    def disconnect(self, domid: DomId) -> None:
        self.connected.pop(domid, None)


class World:
    def __init__(self, directory: Path, version: XenVersion) -> None:
        self.host = EmulatedHost(version=version)
        self.hypervisor = self.host.open_hypervisor()
        self.control = self.hypervisor.open_domain_control()
        self.rings = RingKeeper(self.hypervisor)
        self.server = XenStoreServer(time.monotonic, host=self.rings)
        self.service = XenStoreService(self.server)
        self.service.start()
        self.service.listen(directory / "xenstore")
        self.store = XenStoreClient.at(directory / "xenstore")

    def introducer(self, plan: Plan | None = None, on_stop: OnStop = OnStop.DESTROY) -> Introducer:
        return Introducer(self.control, self.hypervisor.open_foreign_memory, self.store, plan, on_stop=on_stop)

    def connection_word(self, domid: DomId) -> int:
        """What the guest reads in `connection` of the page that its parameter names."""
        domain = self.host.domain(domid)
        assert domain is not None
        gfn = Gfn(domain.hvm_params[HvmParam.STORE_PFN])
        return int.from_bytes(domain.memory.read(gfn * 4096 + CONNECTION_OFFSET, 4), "little")

    def close(self) -> None:
        self.store.close()
        self.service.stop()
        self.host.close()


@contextmanager
def open_world(directory: Path, version: XenVersion = XEN_4_20) -> Iterator[World]:
    world = World(directory, version)
    try:
        yield world
    finally:
        world.close()
