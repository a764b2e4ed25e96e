"""The emulated Xen host: its domains, who may do what to whom, and the sockets on which backends reach it."""

from __future__ import annotations

import errno
import os
import select
import socket
import threading
from collections.abc import Callable, Iterable
from enum import Enum
from pathlib import Path

from xenvirtio.errors import UsageError
from xenvirtio.ids import DomId, Spi
from xenvirtio.xen.capabilities import VIRQ_DOM_EXC, XenVersion
from xenvirtio.xen.emulated.argo import ArgoSwitch
from xenvirtio.xen.emulated.client import DirectTransport, EmulatedHypervisor
from xenvirtio.xen.emulated.counters import Counters
from xenvirtio.xen.emulated.domain import DOM0, Domain, DomainState
from xenvirtio.xen.emulated.event_channel import EventChannelSwitch
from xenvirtio.xen.emulated.interrupt import IrqFdRouter
from xenvirtio.xen.emulated.refusal import Refusal
from xenvirtio.xen.emulated.session import Session, serve_connection
from xenvirtio.xen.emulated.static_memory import StaticMemory

_FIRST_RESERVED = 0x7FF0
_DEFAULT_VERSION = XenVersion(4, 20)


class DomainEvent(Enum):
    CREATED = "created"
    CRASHED = "crashed"
    DYING = "dying"
    """Destroyed by the toolstack; its pages may still be mapped."""
    GONE = "gone"
    """Nothing is left of it."""


class EmulatedHost:
    """A Xen host in this process; guests are threads of it, backends connect to it.

    `silo` is XSM's default on Arm: no event channels and no grants between two unprivileged domains.
    `ioreq_servers`, `irqfd` and `argo` take away what a Xen or a kernel may lack; `version` is what it calls itself.
    """

    def __init__(
        self,
        *,
        silo: bool = False,
        ioreq_servers: bool = True,
        irqfd: bool = True,
        argo: bool = True,
        version: XenVersion = _DEFAULT_VERSION,
    ) -> None:
        self.version = version
        self.counters = Counters()
        self.has_ioreq_servers = ioreq_servers
        self.irqfds = IrqFdRouter() if irqfd else None
        self.switch = EventChannelSwitch(self.is_allowed)
        self.argo = ArgoSwitch(self._runs, self.is_allowed, self.switch.raise_virq, is_enabled=argo)
        self._silo = silo
        self._lock = threading.RLock()
        self._domains: dict[DomId, Domain] = {}
        self._next_domid = 0
        self._targets: dict[DomId, DomId] = {}
        self._static_regions: dict[str, StaticMemory] = {}
        self._subscribers: list[Callable[[DomainEvent, Domain], None]] = []
        self._listeners: list[tuple[socket.socket, str]] = []
        self._acceptors: list[threading.Thread] = []
        self._connections: dict[socket.socket, threading.Thread] = {}
        self.create_domain(memory_bytes=4096).give_xenstore()

    # -- the toolstack's side

    def create_domain(
        self,
        *,
        memory_bytes: int = 64 << 20,
        vcpus: int = 1,
        spi_count: int = 32,
        reserved_spis: Iterable[Spi] = (),
        domid: DomId | None = None,
    ) -> Domain:
        """Make a domain; without `domid` numbers go up and are not used again.

        `reserved_spis` are interrupts that Xen drives itself (32 for a guest with vpl011).
        """
        with self._lock:
            number = self._free_domid() if domid is None else domid
            if number in self._domains:
                raise UsageError(f"there is a domain {number}")
            domain = Domain(
                number,
                memory_bytes=memory_bytes,
                vcpus=vcpus,
                spi_count=spi_count,
                reserved_spis=frozenset(reserved_spis),
                switch=self.switch,
                counters=self.counters,
                on_crash=lambda crashed: self._tell(DomainEvent.CRASHED, crashed),
            )
            self.switch.add_domain(number)
            self._domains[number] = domain
        self._tell(DomainEvent.CREATED, domain)
        return domain

    def _free_domid(self) -> DomId:
        while self._next_domid in self._domains:
            self._next_domid = (self._next_domid + 1) % _FIRST_RESERVED
        number = DomId(self._next_domid)
        self._next_domid = (self._next_domid + 1) % _FIRST_RESERVED
        return number

    def destroy_domain(self, domid: DomId) -> None:
        """End a domain: its guest threads get `DomainDestroyed`. It is a zombie while its pages are mapped."""
        domain = self._domains.get(domid)
        if domain is None or domid == DOM0:
            raise UsageError(f"cannot destroy domain {domid}")
        if not domain.die():
            return
        self.argo.remove_domain(domid)
        self.switch.remove_domain(domid)
        self._tell(DomainEvent.DYING, domain)
        self._bury_if_unmapped(domain)

    def create_dom0less_domain(self, *, memory_bytes: int = 64 << 20, vcpus: int = 1) -> Domain:
        """Make a domain as Xen does at boot: it has no name and no UUID, and its XenStore comes later."""
        domain = self.create_domain(memory_bytes=memory_bytes, vcpus=vcpus)
        domain.offer_xenstore(with_page=self.version >= (4, 21))
        return domain

    def domain(self, domid: DomId) -> Domain | None:
        """Return a domain, zombies included."""
        return self._domains.get(domid)

    def domains(self) -> list[Domain]:
        with self._lock:
            return list(self._domains.values())

    def set_target(self, backend: DomId, guest: DomId) -> None:
        """Give a driver domain device-model rights over one guest, once in its life."""
        with self._lock:
            if backend in self._targets:
                raise UsageError(f"domain {backend} has a target already (Xen answers EINVAL)")
            self._targets[backend] = guest

    def subscribe(self, callback: Callable[[DomainEvent, Domain], None]) -> None:
        """Call `callback` at each change in the life of a domain, in the thread that caused it."""
        self._subscribers.append(callback)

    def _tell(self, event: DomainEvent, domain: Domain) -> None:
        if event is not DomainEvent.CREATED:
            self.switch.raise_virq(DOM0, VIRQ_DOM_EXC)
        for callback in list(self._subscribers):
            callback(event, domain)

    # -- what a static configuration gives

    def add_static_channel(self, one: DomId, one_port: int, other: DomId, other_port: int) -> None:
        """Join two ports of fixed numbers (`xen,evtchn`)."""
        self.switch.add_static(one, one_port, other, other_port)

    def add_static_region(self, identifier: str, length_bytes: int, domids: Iterable[DomId]) -> StaticMemory:
        """Make memory that these domains share (`xen,shared-mem`); as on a debug Xen it holds scrub bytes."""
        region = StaticMemory(length_bytes, frozenset(domids))
        self._static_regions[identifier] = region
        return region

    def static_region(self, domid: DomId, identifier: str) -> StaticMemory | None:
        region = self._static_regions.get(identifier)
        return region if region is not None and domid in region.domids else None

    # -- backends

    def open_hypervisor(self, domid: DomId = DOM0) -> EmulatedHypervisor:
        """Return the hypervisor as a backend in this process, living in domain `domid`, sees it."""
        return EmulatedHypervisor(DirectTransport(Session(self, domid)))

    def listen(self, path: str | os.PathLike[str]) -> None:
        """Serve backend processes on a Unix socket; whoever can connect may act for any domain."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(os.fspath(path))
        listener.listen()
        self._listeners.append((listener, os.fspath(path)))
        acceptor = threading.Thread(target=self._accept, args=(listener,), name="xen-accept", daemon=True)
        self._acceptors.append(acceptor)
        acceptor.start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            self._finish_dead_backends()
            server = threading.Thread(target=self._serve, args=(connection,), name="xen-backend", daemon=True)
            with self._lock:
                self._connections[connection] = server
                server.start()

    def _finish_dead_backends(self) -> None:
        """Drop what dead processes held before a new one is served, as a kernel does before it reports their end."""
        poll = select.poll()
        with self._lock:
            servers = {connection.fileno(): server for connection, server in self._connections.items()}
            for descriptor in servers:
                poll.register(descriptor, select.POLLRDHUP)
            dead = [servers[descriptor] for descriptor, _ in poll.poll(0)]
        for server in dead:
            server.join()

    def _serve(self, connection: socket.socket) -> None:
        serve_connection(self, connection)
        with self._lock:
            del self._connections[connection]
            connection.close()

    def close(self) -> None:
        """Power off: all guests end, all backends lose their connection."""
        for listener, path in self._listeners:
            listener.shutdown(socket.SHUT_RDWR)
            Path(path).unlink(missing_ok=True)
        for acceptor in self._acceptors:
            acceptor.join()
        with self._lock:
            servers = list(self._connections.values())
            for connection in self._connections:
                connection.shutdown(socket.SHUT_RDWR)
        for server in servers:
            server.join()
        for listener, _ in self._listeners:
            listener.close()
        for domain in self.domains():
            if domain.domid != DOM0:
                self.destroy_domain(domain.domid)
        if self.irqfds is not None:
            self.irqfds.close()

    def __enter__(self) -> EmulatedHost:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    # -- what Xen decides for a session

    def is_allowed(self, one: DomId, other: DomId) -> bool:
        """XSM's say on event channels and grants between two domains."""
        return not self._silo or DOM0 in (one, other)

    def _runs(self, domid: DomId) -> bool:
        return self.find_granting(domid) is not None

    def find_granting(self, domid: DomId) -> Domain | None:
        """Return a domain whose grants can still be used."""
        domain = self._domains.get(domid)
        return None if domain is None or domain.state is DomainState.DYING else domain

    def device_model_guest(self, backend: DomId, domid: DomId) -> Domain:
        """Return the guest on which `backend` runs a device-model operation.

        Raises:
            Refusal: EPERM without rights and for its own domain, ESRCH for a domain that is not there.
        """
        domain = self._domains.get(domid)
        if backend != DOM0 and self._targets.get(backend) != domid:
            raise Refusal(errno.EPERM)
        if domain is None:
            raise Refusal(errno.ESRCH)
        if domid == backend:
            raise Refusal(errno.EPERM)
        return domain

    def hold(self, domain: Domain) -> None:
        """Count a mapping of the domain's pages."""
        with self._lock:
            domain.mappings += 1

    def release(self, domain: Domain) -> None:
        with self._lock:
            domain.mappings -= 1
        self._bury_if_unmapped(domain)

    def _bury_if_unmapped(self, domain: Domain) -> None:
        with self._lock:
            is_known = self._domains.get(domain.domid) is domain
            if domain.state is not DomainState.DYING or domain.mappings or not is_known:
                return
            del self._domains[domain.domid]
            self._targets.pop(domain.domid, None)
        self._tell(DomainEvent.GONE, domain)
