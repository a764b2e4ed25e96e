"""One domain: its memory, grant table, vCPUs, interrupts, event channels and IOREQ servers, and how it ends."""

from __future__ import annotations

import os
import select
import threading
import weakref
from collections.abc import Callable
from enum import Enum

from xenvirtio.errors import UsageError
from xenvirtio.ids import PAGE_SIZE, DomId, Gfn, Spi
from xenvirtio.xen.capabilities import GNTTAB_RESERVED_XENSTORE, HANDLE_BYTES, NO_PFN, HvmParam
from xenvirtio.xen.emulated.counters import Counters
from xenvirtio.xen.emulated.event_channel import EventChannelSwitch, Port
from xenvirtio.xen.emulated.grant_table import GrantTable
from xenvirtio.xen.emulated.interrupt import Interrupt, InterruptController
from xenvirtio.xen.emulated.ioreq import IoreqServers
from xenvirtio.xen.emulated.memory import GuestMemory
from xenvirtio.xen.emulated.vcpu import DomainDestroyed, GuestCrashed, Vcpu

DOM0 = DomId(0)

STORE_GFN = Gfn(0x39001)
"""Where a dom0less domain has its XenStore page (the second of GUEST_MAGIC_BASE)."""

CONNECTION_OFFSET = 2068
"""`connection` in that page; 1 asks the guest to wait.

Source: xen/include/public/io/xs_wire.h, struct xenstore_domain_interface.
"""


class DomainState(Enum):
    RUNNING = "running"
    CRASHED = "crashed"
    """Stopped, and still there until the toolstack destroys it."""
    DYING = "dying"
    """Destroyed; a zombie for as long as somebody maps its pages."""


class GuestEventChannels:
    """Event channels as the guest's own side uses them."""

    def __init__(self, domid: DomId, switch: EventChannelSwitch, counters: Counters) -> None:
        self._domid = domid
        self._switch = switch
        self._counters = counters
        self._ports: dict[int, Port] = {}

    def allocate_unbound(self, remote_domid: DomId) -> int:
        return self._keep(self._switch.allocate_unbound(self._domid, remote_domid))

    def bind_interdomain(self, remote_domid: DomId, remote_port: int) -> int:
        return self._keep(self._switch.bind_interdomain(self._domid, remote_domid, remote_port))

    def bind_virq(self, virq: int) -> int:
        return self._keep(self._switch.bind_virq(self._domid, virq))

    def _keep(self, port: Port) -> int:
        self._ports[port.number] = port
        return port.number

    def notify(self, port: int) -> None:
        self._counters.add("events_to_backend")
        self._ports[port].notify()

    def inbound(self, port: int) -> int:
        """An eventfd that is readable while an event is pending; whoever reads it takes the event."""
        return self._ports[port].inbound

    def wait(self, port: int, timeout_s: float | None = None) -> bool:
        """Wait for an event and take it; False when the time was up."""
        inbound = self._ports[port].inbound
        poll = select.poll()
        poll.register(inbound, select.POLLIN)
        if not poll.poll(None if timeout_s is None else timeout_s * 1000):
            return False
        self._counters.add("events_to_guest", os.eventfd_read(inbound))
        return True

    def close(self, port: int) -> None:
        self._switch.close(self._domid, self._ports.pop(port))


class Domain:
    """A domain of the emulated host. Guest programs are threads that use it; `EmulatedHost` makes and ends it."""

    def __init__(
        self,
        domid: DomId,
        *,
        memory_bytes: int,
        vcpus: int,
        spi_count: int,
        reserved_spis: frozenset[Spi],
        switch: EventChannelSwitch,
        counters: Counters,
        on_crash: Callable[[Domain], None],
    ) -> None:
        self.domid = domid
        self.state = DomainState.RUNNING
        self.crash_reason: str | None = None
        self.lock = threading.RLock()
        """Guards `state` and `servers`."""
        self.memory = GuestMemory(memory_bytes)
        self.grants = GrantTable(self.memory)
        self.event_channels = GuestEventChannels(domid, switch, counters)
        self.interrupts = InterruptController(spi_count, reserved_spis, counters.add)
        self.vcpus = [Vcpu(self, index, counters.add) for index in range(vcpus)]
        self.servers = IoreqServers(
            lambda emulator: [switch.allocate_unbound(domid, emulator) for _ in range(vcpus)],
            lambda port: switch.close(domid, port),
        )
        self.stopped = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        """Readable for ever once the domain has stopped."""
        weakref.finalize(self, os.close, self.stopped)
        self.handle = bytes(HANDLE_BYTES)
        self.hvm_params: dict[int, int] = {}
        self.populated_pages = self.memory.ram_pages
        self.max_pages = self.memory.ram_pages
        self.mappings = 0
        """How many mappings of its pages other domains hold; the host's lock guards it."""
        self._on_crash = on_crash

    def give_xenstore(self) -> None:
        """Do what a toolstack does for a domain that it creates: it can talk to XenStore from its first instruction."""
        self.offer_xenstore(with_page=True)
        self.memory.write(STORE_GFN * PAGE_SIZE + CONNECTION_OFFSET, bytes(4))

    @property
    def xenstore_address(self) -> int:
        """Where the page of its XenStore ring lies in this process. Raises UsageError while there is none."""
        if self.hvm_params.get(HvmParam.STORE_PFN) != STORE_GFN:
            raise UsageError(f"domain {self.domid} has no XenStore page")
        return self.memory.host_address(STORE_GFN * PAGE_SIZE, PAGE_SIZE)

    def offer_xenstore(self, *, with_page: bool) -> None:
        """Do what Xen does for a dom0less domain that shall have a XenStore later: an event channel, and a page.

        Before 4.21 there is no page; the domain that runs XenStore makes it.

        Source: xen/arch/arm/dom0less-build.c (4.20), xen/common/device-tree/dom0less-build.c (4.21).
        """
        self.hvm_params[HvmParam.STORE_EVTCHN] = self.event_channels.allocate_unbound(DOM0)
        self.hvm_params[HvmParam.STORE_PFN] = NO_PFN
        if with_page:
            self.memory.restore_page(STORE_GFN)
            self.populated_pages += 1
            self.max_pages += 1
            self.memory.write(STORE_GFN * PAGE_SIZE + CONNECTION_OFFSET, b"\x01\0\0\0")
            self.grants.seed(GNTTAB_RESERVED_XENSTORE, DOM0, STORE_GFN)
            self.hvm_params[HvmParam.STORE_PFN] = STORE_GFN

    def vcpu(self, index: int = 0) -> Vcpu:
        return self.vcpus[index]

    def interrupt(self, irq: Spi) -> Interrupt:
        return self.interrupts.line(irq)

    def check_running(self) -> None:
        """Raise what ends a guest thread when the domain does not run any more."""
        if self.state is DomainState.DYING:
            raise DomainDestroyed(f"domain {self.domid}")
        if self.state is DomainState.CRASHED:
            raise GuestCrashed(f"domain {self.domid}: {self.crash_reason}")

    def crash(self, reason: str) -> None:
        """Stop all vCPUs; the domain stays until it is destroyed."""
        with self.lock:
            if self.state is not DomainState.RUNNING:
                return
            self.state = DomainState.CRASHED
            self.crash_reason = reason
            os.eventfd_write(self.stopped, 1)
        self._on_crash(self)

    def die(self) -> bool:
        """Stop all vCPUs for good and drop the IOREQ servers; False when it was dying already."""
        with self.lock:
            if self.state is DomainState.DYING:
                return False
            self.state = DomainState.DYING
            os.eventfd_write(self.stopped, 1)
            self.servers.destroy_all()
        return True
