"""Event channels: numbered ports of a domain, joined in pairs by two eventfds, one for each direction.

A pair outlives the binding of either end: whoever binds the surviving port next gets the same two descriptors, so
a vCPU that waits on its side is reached by the backend's successor. The holder of a port notifies by writing to
the descriptor, without asking the host; what can be pending at all is one bit, so a stale write is a spurious event.

Source: xen/common/event_channel.c, and what was seen of it through Linux's /dev/xen/evtchn.
"""

from __future__ import annotations

import errno
import os
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass

from xenvirtio.errors import UsageError
from xenvirtio.ids import DomId
from xenvirtio.xen.emulated.refusal import Refusal

VIRQ_COUNT = 24
"""Source: xen/include/public/xen.h, NR_VIRQS."""


class EventPair:
    """Two eventfds; side 0 belongs to the end that allocated the channel."""

    def __init__(self) -> None:
        flags = os.EFD_CLOEXEC | os.EFD_NONBLOCK
        self.descriptors = (os.eventfd(0, flags), os.eventfd(0, flags))
        weakref.finalize(self, _close_both, self.descriptors)


def _close_both(descriptors: tuple[int, int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


@dataclass(slots=True, eq=False)
class Port:
    """One end of a channel: unbound while `remote_port` is None, and then reserved for `remote_domid`.

    With `virq` the other end is Xen itself: an interrupt that it raises, and `remote_port` is 0.
    """

    number: int
    remote_domid: DomId
    pair: EventPair
    side: int
    remote_port: int | None = None
    virq: int | None = None
    is_static: bool = False
    is_bound: bool = False
    """A static port that a process has; others are bound for as long as they exist."""

    @property
    def inbound(self) -> int:
        """Readable while an event is pending here."""
        return self.pair.descriptors[self.side]

    @property
    def outbound(self) -> int:
        """Written to notify the other end."""
        return self.pair.descriptors[1 - self.side]

    def notify(self) -> None:
        os.eventfd_write(self.outbound, 1)


class EventChannelSwitch:
    """The ports of all domains."""

    def __init__(self, is_allowed: Callable[[DomId, DomId], bool]) -> None:
        """`is_allowed` is XSM's say on a channel between two domains."""
        self._is_allowed = is_allowed
        self._ports: dict[DomId, dict[int, Port]] = {}
        self._lock = threading.Lock()

    def add_domain(self, domid: DomId) -> None:
        with self._lock:
            self._ports[domid] = {}

    def remove_domain(self, domid: DomId) -> None:
        """Close all ports of a dying domain; the other ends become unbound."""
        with self._lock:
            for port in list(self._ports.get(domid, {}).values()):
                port.is_static = False
                self._close(domid, port)
            self._ports.pop(domid, None)

    def allocate_unbound(self, owner: DomId, remote_domid: DomId) -> Port:
        """Make a port of `owner` that `remote_domid` may bind to."""
        with self._lock:
            self._check(owner, remote_domid)
            return self._add(owner, Port(0, remote_domid, EventPair(), side=0))

    def bind_interdomain(self, owner: DomId, remote_domid: DomId, remote_port: int) -> Port:
        """Join a new port of `owner` to an unbound one; it is pending at once, since events may have been lost."""
        with self._lock:
            self._check(owner, remote_domid)
            remote = self._ports[remote_domid].get(remote_port)
            if remote is None or remote.remote_port is not None or remote.remote_domid != owner:
                raise Refusal(errno.EINVAL, f"port {remote_port} of domain {remote_domid} is not unbound for {owner}")
            port = self._add(owner, Port(0, remote_domid, remote.pair, 1 - remote.side, remote_port))
            remote.remote_port = port.number
            os.eventfd_write(port.inbound, 1)
            return port

    def bind_virq(self, owner: DomId, virq: int) -> Port:
        """Make a port of `owner` that `raise_virq` reaches; one for each interrupt (all are of vCPU 0)."""
        with self._lock:
            if not 0 <= virq < VIRQ_COUNT:
                raise Refusal(errno.EINVAL)
            if self._virq(owner, virq) is not None:
                raise Refusal(errno.EEXIST, f"domain {owner} has bound interrupt {virq} already")
            return self._add(owner, Port(0, owner, EventPair(), side=0, remote_port=0, virq=virq))

    def add_static(self, one: DomId, one_port: int, other: DomId, other_port: int) -> None:
        """Join two ports of fixed numbers for as long as both domains live, as Xen does at boot, whatever XSM says."""
        with self._lock:
            if one not in self._ports or other not in self._ports:
                raise UsageError(f"no domain {one} or no domain {other}")
            pair = EventPair()
            ends = ((one, one_port, other, other_port), (other, other_port, one, one_port))
            for side, (owner, number, peer, peer_port) in enumerate(ends):
                if number in self._ports[owner]:
                    raise UsageError(f"port {number} of domain {owner} is taken")
                self._ports[owner][number] = Port(number, peer, pair, side, peer_port, is_static=True)

    def bind_static(self, owner: DomId, number: int) -> Port:
        """Return a port made by `add_static`; for any other number one that nobody is at the other end of, as Xen.

        Two holders of one port would damage a real kernel; the second one is refused.
        """
        with self._lock:
            port = self._ports[owner].get(number)
            if port is None:
                port = self._ports[owner][number] = Port(number, owner, EventPair(), side=0, is_static=True)
            if port.is_bound or not port.is_static:
                raise Refusal(errno.EBUSY, f"port {number} of domain {owner} is in use")
            port.is_bound = True
            return port

    def raise_virq(self, domid: DomId, virq: int) -> None:
        """Make an interrupt pending in a domain; it is lost where nobody has bound it."""
        with self._lock:
            port = self._virq(domid, virq)
            if port is not None:
                os.eventfd_write(port.inbound, 1)

    def _virq(self, domid: DomId, virq: int) -> Port | None:
        return next((port for port in self._ports.get(domid, {}).values() if port.virq == virq), None)

    def close(self, owner: DomId, port: Port) -> None:
        """Close a port; closing one that is gone with its domain is no error."""
        with self._lock:
            self._close(owner, port)

    def _check(self, owner: DomId, remote_domid: DomId) -> None:
        if owner not in self._ports or remote_domid not in self._ports:
            raise Refusal(errno.ESRCH)
        if not self._is_allowed(owner, remote_domid):
            raise Refusal(errno.EPERM, f"XSM forbids channels between domains {owner} and {remote_domid}")

    def _add(self, owner: DomId, port: Port) -> Port:
        ports = self._ports[owner]
        port.number = next(number for number in range(1, len(ports) + 2) if number not in ports)
        ports[port.number] = port
        return port

    def _close(self, owner: DomId, port: Port) -> None:
        if self._ports.get(owner, {}).get(port.number) is not port:
            return
        if port.is_static:
            port.is_bound = False  # the channel stays, and keeps its events
            return
        del self._ports[owner][port.number]
        if port.remote_port is None:
            return
        remote = self._ports.get(port.remote_domid, {}).get(port.remote_port)
        if remote is not None:
            remote.remote_port = None
