"""The pump of the server: one thread, one epoll, sockets and domains' rings alike.

Each client gets a bounded turn, one after the other, so that a flood from one delays the others by a turn each and no
more. A client that the server does not want to read (debt, unread replies) is left to its carrier's own bound.

A round is: what has arrived, a turn for each that has something to say, the state saved, replies sent (`Link` says why
in this order).
"""

from __future__ import annotations

import heapq
import math
import os
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from xenvirtio.errors import PeerProtocolError, UsageError
from xenvirtio.ids import DomId
from xenvirtio.xenstore import serve_socket
from xenvirtio.xenstore.connection import Connection
from xenvirtio.xenstore.domains import CONTROL_DOMID
from xenvirtio.xenstore.serve_link import Link
from xenvirtio.xenstore.serve_poll import READABLE, WRITABLE, Poller
from xenvirtio.xenstore.serve_socket import SocketLink
from xenvirtio.xenstore.server import XenStoreServer

Result = TypeVar("Result")

MESSAGES_PER_TURN = 16
MESSAGES_PER_GUEST_TURN = 2
"""A domain that always has more to ask makes the others wait for so many of its requests in each round, and a round
with one request takes about as long: so it gets its share and little more."""
EXPIRY_S = 1.0


class XenStoreService:
    """Runs a `XenStoreServer` in a thread of its own. Every method may be called from any thread."""

    def __init__(self, server: XenStoreServer | None = None, *, save: Callable[[], None] = lambda: None) -> None:
        """`save` is called, in the thread, after requests were handled and before any of their replies is sent: what
        it keeps no client has seen acknowledged in vain."""
        self._save = save
        self._server = server if server is not None else XenStoreServer(time.monotonic)
        self._poller = Poller()
        self._links: dict[Connection, Link] = {}
        self._runnable: dict[Link, None] = {}
        self._delayed: dict[Link, None] = {}
        self._due: list[tuple[float, int, Link]] = []
        """A heap of the delayed ones that only have to wait, by when; the others wait for their peer to read."""
        self._unread: dict[Link, None] = {}
        self._touched: dict[Link, None] = {}
        """Those whose state may have to be kept, or who may have something to send, at the end of this round."""
        self._listeners: list[tuple[socket.socket, Path]] = []
        self._expired_s = time.monotonic()
        self._calls: list[Callable[[], None]] = []
        self._calls_lock = threading.Lock()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.watch_descriptor(self._wake, lambda events: self._run_calls())
        self._is_stopping = False
        self._thread: threading.Thread | None = None

    def __enter__(self) -> XenStoreService:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Begin to serve."""
        if self._thread is not None:
            raise UsageError("the XenStore service runs already")
        self._thread = threading.Thread(target=self._run, name="xenstore", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Close every socket, remove the listening paths, end the thread. The server's state stays readable."""
        if self._thread is None or self._is_stopping:
            return
        self.call(lambda server: setattr(self, "_is_stopping", True))
        self._thread.join()
        os.close(self._wake)

    def call(self, action: Callable[[XenStoreServer], Result]) -> Result:
        """Run `action` with the server, between two requests, and return what it returned once that is kept.

        This is how the keeper of domains introduces and destroys them, and how a state is dumped.
        """
        if self._thread is None or not self._thread.is_alive() or self._thread is threading.current_thread():
            return self._act(action)
        outcome: Future[Result] = Future()

        def run() -> None:
            try:
                outcome.set_result(self._act(action))
            except BaseException as error:
                outcome.set_exception(error)

        with self._calls_lock:
            self._calls.append(run)
        os.eventfd_write(self._wake, 1)
        return outcome.result()

    def _act(self, action: Callable[[XenStoreServer], Result]) -> Result:
        result = action(self._server)
        self._commit()
        return result

    # -- sockets

    def listen(self, path: str | Path, domid: DomId = CONTROL_DOMID, *, privileged: bool | None = None) -> None:
        """Accept clients at a socket path, of mode 0600; each speaks as domain `domid`. A stale socket is replaced.

        Raises:
            OSError: the path cannot be used; EADDRINUSE when another server listens there.
        """
        listener = serve_socket.listen(Path(path))
        is_privileged = domid == CONTROL_DOMID if privileged is None else privileged

        def register(server: XenStoreServer) -> None:
            self._listeners.append((listener, Path(path)))
            self.watch_descriptor(
                listener.fileno(), lambda events: self._accept(listener, domid, privileged=is_privileged)
            )

        self.call(register)

    def attach(self, carrier: socket.socket, domid: DomId, *, privileged: bool | None = None) -> None:
        """Serve a connected stream socket as domain `domid`; it belongs to the service from now on."""
        self.call(lambda server: self._add_socket(carrier, domid, privileged))

    def _accept(self, listener: socket.socket, domid: DomId, *, privileged: bool) -> None:
        try:
            carrier, _ = listener.accept()
        except OSError:
            return  # it has given up already, or we are out of descriptors
        self._add_socket(carrier, domid, privileged)

    def _add_socket(self, carrier: socket.socket, domid: DomId, privileged: bool | None) -> None:
        connection = self._server.connect(domid, privileged=privileged, kept=False)
        self.add(SocketLink(connection, carrier, self._poller, self._serve_socket))

    def _serve_socket(self, link: Link, events: int) -> None:
        assert isinstance(link, SocketLink)
        try:
            if events & WRITABLE:
                link.flush()
                self._set_interest(link)
                if link.wants_another_round:
                    self._touched[link] = None  # nobody tells of it: all that was sent has been taken
            if events & READABLE:
                if not link.receive():
                    self.drop(link)
                    return
                self._runnable[link] = None  # its turn comes in this very round: what it waits for stays as it is
        except OSError:
            self.drop(link)

    # -- for carriers; in the thread only, or before it runs

    def watch_descriptor(self, descriptor: int, ready: Callable[[int], None]) -> None:
        """Call `ready` with the poller's events when a descriptor is readable."""
        self._poller.ask(descriptor, READABLE, ready)

    def add(self, link: Link) -> None:
        """Serve a connection by this carrier."""
        self._links[link.connection] = link
        self._touched[link] = None
        self._set_interest(link)

    def wake(self, link: Link) -> None:
        """The peer has done something: requests, or room for replies."""
        self._touched[link] = None
        if link not in self._delayed:
            self._runnable[link] = None

    def again(self, link: Link) -> None:
        """There are requests of which nobody tells. One that is delayed finds them when it is not any more."""
        if link not in self._delayed:
            self._runnable[link] = None

    def drop(self, link: Link) -> None:
        """Close a link and its connection."""
        if self._links.pop(link.connection, None) is None:
            return
        for known in (self._runnable, self._delayed, self._unread, self._touched):
            known.pop(link, None)
        link.close()
        self._server.disconnect(link.connection)

    # -- the thread

    def _run(self) -> None:
        while not self._is_stopping:
            self._poller.wait(self._timeout_s())
            self.take_turns()
        self._close_all()

    def take_turns(self) -> None:
        """Finish a round. Who has no thread calls this after whatever the poller would have told."""
        for link in list(self._runnable):
            if link not in self._runnable:
                continue  # dropped meanwhile: somebody released its domain
            self._touched[link] = None
            try:
                self._take_turn(link)
            except PeerProtocolError as error:
                self._refuse(link, error)
        self._commit()
        self._revive()

    def _timeout_s(self) -> float | None:
        if self._runnable or self._touched:
            return 0.0
        if not self._delayed and not self._unread:
            return None
        return min(EXPIRY_S, max(0.0, self._due[0][0] - time.monotonic())) if self._due else EXPIRY_S

    def _run_calls(self) -> None:
        os.eventfd_read(self._wake)
        with self._calls_lock:
            calls, self._calls = self._calls, []
        for call in calls:
            call()

    def _take_turn(self, link: Link) -> None:
        is_privileged = link.connection.privileged
        for _ in range(MESSAGES_PER_TURN if is_privileged else MESSAGES_PER_GUEST_TURN):
            if link.is_congested:
                wait_s = math.inf
            else:
                wait_s = 0.0 if is_privileged else self._server.read_delay_s(link.connection)
            if wait_s:
                self._delay(link, wait_s)
            message = link.next_message() if not wait_s else None
            if message is None:
                self._runnable.pop(link, None)
                return
            self._server.receive(link.connection, message)

    def _delay(self, link: Link, wait_s: float) -> None:
        link.due_s = time.monotonic() + wait_s
        self._delayed[link] = None
        if wait_s != math.inf:
            heapq.heappush(self._due, (link.due_s, id(link), link))

    def _refuse(self, link: Link, error: PeerProtocolError) -> None:
        self._runnable.pop(link, None)
        if link.refuse(error):
            self.drop(link)

    def _commit(self) -> None:
        """Have the state kept, then let peers see it."""
        touched, self._touched = self._touched, {}
        for connection in self._server.take_ready():
            link = self._links.get(connection)
            if link is not None:
                touched[link] = None
        known = [link for link in touched if link.connection in self._links]
        open_ones = [link for link in known if not link.connection.is_closed]
        for link in open_ones:
            link.prepare()
        self._save()
        if [link for link in open_ones if link.settle()]:
            self._save()
        for link in known:
            self._flush(link)
            if link.connection.is_closed:
                self.drop(link)

    def _flush(self, link: Link) -> None:
        try:
            link.flush()
        except PeerProtocolError as error:
            self._refuse(link, error)
        except OSError:
            self.drop(link)
        else:
            self._set_interest(link)
            if link.wants_another_round:
                self._touched[link] = None

    def _revive(self) -> None:
        """Let those take requests again who have waited long enough or have read their replies."""
        if not self._delayed and not self._unread:
            return
        now_s = time.monotonic()
        if now_s - self._expired_s >= EXPIRY_S:
            self._expired_s = now_s
            for link in self._unread:
                self._server.expire_events(link.connection)
        while self._due and self._due[0][0] <= now_s:
            _, _, link = heapq.heappop(self._due)
            if link in self._delayed and link.due_s <= now_s:
                self._resume(link)

    def _resume(self, link: Link) -> None:
        del self._delayed[link]
        self._runnable[link] = None

    def _set_interest(self, link: Link) -> None:
        """Ask for what this link can use now."""
        if link.has_unsent:
            self._unread[link] = None
        else:
            self._unread.pop(link, None)
            if link.due_s == math.inf and link in self._delayed:
                self._resume(link)
        link.set_interest(reads=link not in self._delayed and link not in self._runnable)

    def _close_all(self) -> None:
        for link in list(self._links.values()):
            with suppress(OSError, PeerProtocolError):
                link.flush()
            # the server keeps the connection's watches, so that a state dumped now has them
            link.close()
        for listener, path in self._listeners:
            listener.close()
            path.unlink(missing_ok=True)
        self._poller.close()
