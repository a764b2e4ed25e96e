"""Datagrams over Argo: a port of this domain, and the domains it talks to.

Each partner has a ring of its own, so that one that floods fills nothing but its own; `receive` takes from them in
turn. The rules that were found on real Xen, kept here so that users need not know them:

- a ring is registered once (a second registration leaves a record behind that nothing removes) and unregistered on
  every way out, or Xen goes on writing into frames that Linux has given to somebody else;
- the receiver notifies after it has taken messages out, else a sender that waits for room waits for ever;
- Xen's event says that something happened in some ring of the domain, so each event means: look at all of them.
"""

from __future__ import annotations

import errno
import logging
import os
import select
import threading
import time
from collections.abc import Iterable

from xenvirtio.channels.argo_ring import DATA_OFFSET, ArgoMessage, ArgoRing
from xenvirtio.channels.argo_wake import Wake, open_wake
from xenvirtio.errors import HypervisorError, PeerProtocolError, UsageError
from xenvirtio.ids import PAGE_SIZE, ArgoPort, DomId
from xenvirtio.xen.capabilities import Argo, ArgoAddress, Hypervisor, Mapping

log = logging.getLogger(__name__)

RING_BYTES = 16 * PAGE_SIZE - DATA_OFFSET
"""Sixteen whole pages: messages of up to 65,440 bytes."""

LOOK_AGAIN_S = 0.5
"""How long `send_wait` trusts an event to come: none does when the receiver has gone away meanwhile."""


class _Partner:
    def __init__(self, mapping: Mapping, length_bytes: int) -> None:
        self.mapping = mapping
        self.ring = ArgoRing(mapping.address, length_bytes)


class ArgoChannel:
    """One port, any number of partners. Made by `open`; threads may share it.

    To wait: call `receive` until it returns None, then poll `fileno`.
    """

    def __init__(self, argo: Argo, wake: Wake, port: ArgoPort, *, ring_bytes: int = RING_BYTES) -> None:
        """Take over `argo` and `wake`; no partner yet."""
        self._argo = argo
        self._wake = wake
        self.port = port
        self._ring_bytes = ring_bytes
        self._partners: dict[DomId, _Partner] = {}
        self._lock = threading.RLock()
        self._is_closed = False
        self._left = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        """Readable while an event that `send_wait` has taken is still owed to whoever receives."""
        self._ready = select.epoll()
        self._ready.register(wake.fileno(), select.EPOLLIN)
        self._ready.register(self._left, select.EPOLLIN)

    @classmethod
    def open(
        cls,
        hypervisor: Hypervisor,
        port: ArgoPort,
        partners: Iterable[DomId] = (),
        *,
        ring_bytes: int = RING_BYTES,
        wake: Wake | None = None,
    ) -> ArgoChannel:
        """Open Argo and a ring for each of `partners`. Without `wake`: Xen's event where it is free, else a timer.

        `wake` is taken over, also when this fails.

        Raises:
            HypervisorError: no Argo here, or a ring was refused (see `Argo.register_ring`).
        """
        chosen = wake if wake is not None else open_wake(hypervisor)
        try:
            argo = hypervisor.open_argo()
        except BaseException:
            chosen.close()
            raise
        channel = cls(argo, chosen, port, ring_bytes=ring_bytes)
        try:
            for partner in partners:
                channel.add_partner(partner)
        except BaseException:
            channel.close()
            raise
        return channel

    @property
    def message_max_bytes(self) -> int:
        """The longest message that can be received; the other end's ring decides what can be sent."""
        return self._ring_bytes - 2 * 16

    @property
    def partners(self) -> list[DomId]:
        with self._lock:
            return list(self._partners)

    # -- who may send to us

    def add_partner(self, domid: DomId) -> None:
        """Let a domain send to this port; one that may already is fine.

        Raises:
            HypervisorError: see `Argo.register_ring`.
        """
        with self._lock:
            self._check_open()
            if domid not in self._partners:
                mapping = self._argo.register_ring(self.port, domid, self._ring_bytes)
                self._partners[domid] = _Partner(mapping, self._ring_bytes)

    def drop_partner(self, domid: DomId) -> None:
        """Take a domain's ring away with what is in it; needed when the domain has ended, since Xen has done so too."""
        with self._lock:
            partner = self._partners.pop(domid, None)
            if partner is not None:
                partner.mapping.close()

    # -- messages

    def send(self, message: bytes, to: ArgoAddress, kind: int = 0) -> bool:
        """Send one message. False: no room in the receiver's ring; `fileno` is readable once there is.

        Raises:
            HypervisorError: EMSGSIZE, ECONNREFUSED (nobody listens there for us), ESRCH (no such domain), EPERM.
        """
        try:
            self._argo.send(self.port, to, kind, message)
        except HypervisorError as error:
            if error.errno in (errno.EAGAIN, errno.EBUSY):
                return False
            raise
        return True

    def send_wait(self, message: bytes, to: ArgoAddress, kind: int = 0, *, timeout_s: float) -> None:
        """Send one message, waiting for room. What arrives meanwhile stays for `receive`.

        Raises:
            HypervisorError: as `send`; EAGAIN when there was no room in time.
        """
        deadline_s = time.monotonic() + timeout_s
        while not self.send(message, to, kind):
            remaining_s = deadline_s - time.monotonic()
            if remaining_s <= 0:
                raise HypervisorError("argo_send", errno.EAGAIN, domid=to.domid, hint="the receiver's ring is full")
            poll = select.poll()
            poll.register(self._wake.fileno(), select.POLLIN)
            poll.poll(min(remaining_s, LOOK_AGAIN_S) * 1000)
            with self._lock:
                if self._wake.clear():
                    os.eventfd_write(self._left, 1)

    def receive(self) -> ArgoMessage | None:
        """Return the next message, None when there is none now."""
        with self._lock:
            self._check_open()
            message = self._take()
            if message is None:
                # First the event, then the rings: what comes after this look raises another event.
                self._clear()
                message = self._take()
            if message is None:
                self._tell_room()
            return message

    def wait_readable(self, timeout_s: float) -> bool:
        """Wait until there may be something to receive, or room to send; return whether there may."""
        return bool(self._ready.poll(max(0.0, timeout_s)))

    def fileno(self) -> int:
        """For a selector: readable when `receive` should be called, or a `send` that found no room be tried again."""
        return self._ready.fileno()

    def close(self) -> None:
        """Unregister the rings; what is in them is lost. May be called twice."""
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
            for partner in self._partners.values():
                partner.mapping.close()
            self._partners.clear()
            self._argo.close()
            self._ready.close()
            self._wake.close()
            os.close(self._left)

    def __enter__(self) -> ArgoChannel:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    # -- with the lock held

    def _check_open(self) -> None:
        if self._is_closed:
            raise UsageError("the Argo channel is closed")

    def _take(self) -> ArgoMessage | None:
        """Take from the first ring that has something, and put that partner last."""
        for domid, partner in list(self._partners.items()):
            try:
                message = partner.ring.next_message()
            except PeerProtocolError as error:
                log.error("dropping the ring of domain %d: %s", domid, error)
                self.drop_partner(domid)
                continue
            if message is not None:
                self._partners[domid] = self._partners.pop(domid)
                if partner.ring.taken_bytes > self._ring_bytes // 2:
                    self._tell_room()  # a sender need not wait until a busy receiver finds nothing more
                return message
        return None

    def _tell_room(self) -> None:
        """Have Xen wake who waits for room; once after many messages, since it is a hypercall."""
        if any(partner.ring.taken_bytes for partner in self._partners.values()):
            for partner in self._partners.values():
                partner.ring.taken_bytes = 0
            self._argo.notify()

    def _clear(self) -> None:
        self._wake.clear()
        try:
            os.eventfd_read(self._left)
        except BlockingIOError:
            pass
