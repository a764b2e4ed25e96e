"""The rings of all domains on a Xen host: what the server's operations on domains mean there, and how domains end.

One `EventChannels` carries all rings, so that the pump has one descriptor more however many domains there are. A
domain's page comes by the grant that its builder made (`GNTTAB_RESERVED_XENSTORE`), that of the own kernel by xenfs.
"""

from __future__ import annotations

import ctypes
import errno
import time
from collections.abc import Callable
from dataclasses import dataclass

from xenvirtio.channels.xenstore_ring import REQUEST_CONSUMER, ServerEnd
from xenvirtio.errors import HypervisorError, UsageError
from xenvirtio.ids import PAGE_SIZE, DomId, EventPort, RemotePort
from xenvirtio.memory.raw import fence
from xenvirtio.xen.capabilities import GNTTAB_RESERVED_XENSTORE, VIRQ_DOM_EXC, Hypervisor, Mapping
from xenvirtio.xenstore.domains import CONTROL_DOMID
from xenvirtio.xenstore.serve import XenStoreService
from xenvirtio.xenstore.serve_ring import RingLink
from xenvirtio.xenstore.server import OFFERED_FEATURES, XenStoreServer
from xenvirtio.xenstore.stream import RingStream
from xenvirtio.xenstore.wire import Feature

OFFERED_ON_XEN = OFFERED_FEATURES | Feature.RECONNECTION
"""A guest may ask for a new connection by itself (after a kexec for example), which C xenstored does not offer."""

PREDECESSOR_S = 5.0
"""How long a killed predecessor may hold its event channels: the kernel frees them some time after the kill. One limit
for all of them, or domains that closed their end could delay us for as long as they like."""
POLL_S = 0.02


@dataclass(slots=True, eq=False)
class _Ring:
    """What belongs to one served ring besides its link."""

    domid: DomId
    mapping: Mapping
    port: EventPort
    """The local end of its event channel; 0 while it has none."""


class XenRings:
    """`DomainHost` on Xen. Give it to the server, then `start` it with the service before that runs."""

    def __init__(self, hypervisor: Hypervisor, *, warn: Callable[[str], None] = lambda line: None) -> None:
        """Raises HypervisorError: there is no Xen here, or we may not use it."""
        self._hypervisor = hypervisor
        self._warn = warn
        self._control = hypervisor.open_domain_control()
        self._channels = hypervisor.open_event_channels()
        self._grants = hypervisor.open_grants()
        self._started: tuple[XenStoreService, XenStoreServer] | None = None
        self._death = EventPort(0)
        self._rings: dict[DomId, _Ring] = {}
        self._by_port: dict[EventPort, _Ring] = {}
        self._alive: set[DomId] = set()
        self.links: dict[DomId, RingLink] = {}
        """What is served, by domain. To be read only."""

    def start(self, service: XenStoreService, server: XenStoreServer) -> None:
        """Serve the own kernel's ring, and go on with those that a predecessor has served.

        Raises:
            HypervisorError: another XenStore server runs, or the own ring cannot be had.
        """
        self._started = service, server
        deadline_s = time.monotonic() + PREDECESSOR_S
        self._death = _bind_until(deadline_s, lambda: self._channels.bind_virq(VIRQ_DOM_EXC), errno.EEXIST)
        service.watch_descriptor(self._channels.fileno(), lambda events: self.take_events())
        self._serve_own_kernel(deadline_s)
        for domain in server.domains.all():
            if domain.is_introduced and domain.domid != CONTROL_DOMID and self.exists(domain.domid):
                self._go_on(domain.domid, RemotePort(domain.port), deadline_s)
        self.check_domains()  # when all are there to hear of it

    def close(self) -> None:
        """Let go of every ring as it stands: a successor goes on with them. Not while the service runs."""
        for link in list(self.links.values()):
            link.close()
        self._grants.close()
        self._channels.close()
        self._control.close()

    # -- what the server asks for

    def exists(self, domid: DomId) -> bool:
        """Is there such a domain? A new one makes no event, so an unknown one is looked for again."""
        if domid not in self._alive:
            self._alive = {info.domid for info in self._control.domains() if not info.is_dying}
        return domid in self._alive

    def connect(self, domid: DomId, gfn: int, port: int) -> None:
        """Serve a domain's ring from its beginning; one that is served already is bound anew and reset.

        Raises:
            HypervisorError: no such domain, no grant, or the port is not for us.
        """
        if domid in self._rings:
            self._rebind(self._rings[domid], RemotePort(port))
        else:
            mapping = self._map(domid)
            try:
                local = self._bind(domid, RemotePort(port))
            except HypervisorError:
                mapping.close()
                raise
            self._serve(domid, mapping, local)
        self.links[domid].restart()

    def disconnect(self, domid: DomId) -> None:
        """Stop serving a ring."""
        if domid in self.links:
            self._service.drop(self.links[domid])

    # -- events

    def take_events(self) -> None:
        """Wake the rings whose domains have notified, look after domains when one has ended. The pump calls this."""
        ports = self._channels.read()
        self._channels.unmask(ports)  # before the rings are looked at: what comes meanwhile is told again
        for port in ports:
            if port == self._death:
                self.check_domains()
            elif (ring := self._by_port.get(port)) is not None:
                self._service.wake(self.links[ring.domid])

    def check_domains(self) -> None:
        """Look which domains have stopped or are gone, and tell the server.

        A dying one is given up at once: only then can Xen free its memory.
        """
        found = {info.domid: info for info in self._control.domains()}
        self._alive = {domid for domid, info in found.items() if not info.is_dying}
        for domain in self._server.domains.all():
            if domain.domid == CONTROL_DOMID:
                continue
            if domain.domid not in self._alive:
                self._server.domain_destroyed(domain.domid)
            elif found[domain.domid].is_shutdown:
                self._server.domain_shut_down(domain.domid)

    # -- rings

    @property
    def _service(self) -> XenStoreService:
        return self._parts[0]

    @property
    def _server(self) -> XenStoreServer:
        return self._parts[1]

    @property
    def _parts(self) -> tuple[XenStoreService, XenStoreServer]:
        if self._started is None:
            raise UsageError("the rings were not started")
        return self._started

    def _serve_own_kernel(self, deadline_s: float) -> None:
        mapping, port = self._hypervisor.map_own_xenstore()
        local = _bind_until(deadline_s, lambda: self._bind(CONTROL_DOMID, port), errno.EINVAL)
        self._serve(CONTROL_DOMID, mapping, local)

    def _go_on(self, domid: DomId, port: RemotePort, deadline_s: float) -> None:
        """Serve a ring that a predecessor has served."""
        try:
            mapping = self._map(domid)
            try:
                local = _bind_until(deadline_s, lambda: self._bind(domid, port), errno.EINVAL)
            except HypervisorError:
                mapping.close()
                raise
        except HypervisorError as error:
            self._warn(f"domain {domid} has no XenStore until it is introduced again: {error}")
            return
        self._serve(domid, mapping, local)

    def _serve(self, domid: DomId, mapping: Mapping, port: EventPort) -> None:
        """Connect a ring: where the domain's streams stood, else from its beginning."""
        ring = _Ring(domid, mapping, port)
        page = memoryview((ctypes.c_char * PAGE_SIZE).from_address(mapping.address)).cast("B")
        end = ServerEnd(page, lambda: self._notify(ring), fence)
        connection = self._server.connect(domid, kept=True)
        if domid == CONTROL_DOMID and not (connection.stream and connection.stream.covers(end.announced)):
            # The own kernel was there before us: its ring may be in use, and is taken as it stands.
            connection.stream = RingStream(consumed=end.words[REQUEST_CONSUMER], produced=end.announced)
        link = RingLink(
            self._server,
            connection,
            end,
            wake=self._service.wake,
            again=self._service.again,
            release=lambda: self._release(ring),
        )
        self._rings[domid], self._by_port[port], self.links[domid] = ring, ring, link
        if connection.stream is None:
            link.restart()
        self._service.add(link)
        self._service.wake(link)

    def _release(self, ring: _Ring) -> None:
        del self._rings[ring.domid], self.links[ring.domid]
        self._unbind(ring)
        ring.mapping.close()

    def _map(self, domid: DomId) -> Mapping:
        return self._grants.map(domid, [GNTTAB_RESERVED_XENSTORE], writable=True)

    def _bind(self, domid: DomId, port: RemotePort) -> EventPort:
        return self._channels.bind_interdomain(domid, port)

    def _rebind(self, ring: _Ring, port: RemotePort) -> None:
        self._unbind(ring)  # first: it may be the same port
        ring.port = self._bind(ring.domid, port)
        self._by_port[ring.port] = ring

    def _unbind(self, ring: _Ring) -> None:
        if self._by_port.pop(ring.port, None) is not None:
            self._channels.unbind(ring.port)
        ring.port = EventPort(0)

    def _notify(self, ring: _Ring) -> None:
        if not ring.port:
            return
        try:
            self._channels.notify(ring.port)
        except HypervisorError as error:  # never seen; the domain suffers, not the others
            self._warn(f"domain {ring.domid} cannot be told of replies: {error}")


def _bind_until(deadline_s: float, bind: Callable[[], EventPort], while_error: int) -> EventPort:
    """Bind what a predecessor may hold for a moment after its end."""
    while True:
        try:
            return bind()
        except HypervisorError as error:
            if error.errno != while_error or time.monotonic() > deadline_s:
                raise
        time.sleep(POLL_S)
