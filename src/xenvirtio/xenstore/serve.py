"""The server behind sockets: one thread, one selector.

Each client gets a bounded turn, one after the other, so that a flood from one delays the others by a turn each and no
more. A client that the server does not want to read (debt, unread replies) is left to its socket buffer.
"""

from __future__ import annotations

import errno
import math
import os
import selectors
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
from xenvirtio.xenstore.connection import Connection
from xenvirtio.xenstore.domains import CONTROL_DOMID
from xenvirtio.xenstore.server import XenStoreServer
from xenvirtio.xenstore.wire import MessageDecoder

Result = TypeVar("Result")

MESSAGES_PER_TURN = 16
RECEIVE_BYTES = 16384
OUTPUT_BYTES = 65536
"""Beyond this many unsent bytes no further request of a client is taken; it has to read first."""
EXPIRY_S = 1.0


class _Link:
    """A socket and the connection it carries."""

    def __init__(self, carrier: socket.socket, connection: Connection) -> None:
        carrier.setblocking(False)
        self.socket = carrier
        self.connection = connection
        self.decoder = MessageDecoder()
        self.output = bytearray()
        self.due_s = 0.0
        """Not to be read before; inf: not before it has read."""
        self.interest = 0

    def fill(self) -> None:
        """Move messages from the connection's queue to the socket's buffer."""
        while len(self.output) < OUTPUT_BYTES and (message := self.connection.outgoing.pop()) is not None:
            self.output += message.encode()

    def flush(self) -> None:
        """Send what the socket takes. Raises OSError when the client is gone."""
        self.fill()
        while self.output:
            try:
                sent = self.socket.send(self.output, socket.MSG_NOSIGNAL)
            except BlockingIOError:
                return
            del self.output[:sent]
            self.fill()


def _remove_stale(path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        if probe.connect_ex(str(path)) == 0:
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE), str(path))
    path.unlink()


class XenStoreService:
    """Runs a `XenStoreServer` in a thread of its own. Every method may be called from any thread."""

    def __init__(self, server: XenStoreServer | None = None, *, save: Callable[[], None] = lambda: None) -> None:
        """`save` is called, in the thread, after requests were handled and before any of their replies is sent: what
        it keeps no client has seen acknowledged in vain."""
        self._save = save
        self._server = server if server is not None else XenStoreServer(time.monotonic)
        self._selector = selectors.DefaultSelector()
        self._links: dict[Connection, _Link] = {}
        self._runnable: dict[_Link, None] = {}
        self._delayed: dict[_Link, None] = {}
        self._unread: dict[_Link, None] = {}
        self._listeners: dict[socket.socket, tuple[Path, DomId, bool]] = {}
        self._expired_s = time.monotonic()
        self._calls: list[Callable[[], None]] = []
        self._calls_lock = threading.Lock()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._selector.register(self._wake, selectors.EVENT_READ)
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
        """Run `action` with the server, between two requests, and return what it returned.

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
        self._save()
        return result

    def listen(self, path: str | Path, domid: DomId = CONTROL_DOMID, *, privileged: bool | None = None) -> None:
        """Accept clients at a socket path, of mode 0600; each speaks as domain `domid`. A stale socket is replaced.

        Raises:
            OSError: the path cannot be used; EADDRINUSE when another server listens there.
        """
        place = Path(path)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            if place.is_socket():
                _remove_stale(place)
            os.fchmod(listener.fileno(), 0o600)  # before the path exists
            listener.bind(str(place))
            listener.listen(64)
            listener.setblocking(False)
        except OSError:
            listener.close()
            raise
        is_privileged = domid == CONTROL_DOMID if privileged is None else privileged

        def register(server: XenStoreServer) -> None:
            self._listeners[listener] = place, domid, is_privileged
            self._selector.register(listener, selectors.EVENT_READ)

        self.call(register)

    def attach(self, carrier: socket.socket, domid: DomId, *, privileged: bool | None = None) -> None:
        """Serve a connected stream socket as domain `domid`; it belongs to the service from now on."""
        self.call(lambda server: self._add(_Link(carrier, server.connect(domid, privileged=privileged))))

    # -- the thread

    def _run(self) -> None:
        while not self._is_stopping:
            for key, events in self._selector.select(self._timeout_s()):
                if key.data is not None:
                    self._serve_socket(key.data, events)
                elif key.fileobj == self._wake:
                    self._run_calls()
                elif isinstance(key.fileobj, socket.socket):
                    self._accept(key.fileobj)
            self._take_turns()
            self._save()
            self._send_ready()
            self._revive()
        self._close_all()

    def _timeout_s(self) -> float | None:
        if self._runnable:
            return 0.0
        now_s = time.monotonic()
        due_s = min((link.due_s for link in self._delayed), default=math.inf)
        if self._delayed or self._unread:
            due_s = min(due_s, now_s + EXPIRY_S)
        return None if due_s == math.inf else max(0.0, due_s - now_s)

    def _run_calls(self) -> None:
        os.eventfd_read(self._wake)
        with self._calls_lock:
            calls, self._calls = self._calls, []
        for call in calls:
            call()

    def _accept(self, listener: socket.socket) -> None:
        _, domid, privileged = self._listeners[listener]
        try:
            carrier, _ = listener.accept()
        except OSError:
            return  # it has given up already, or we are out of descriptors
        self._add(_Link(carrier, self._server.connect(domid, privileged=privileged)))

    def _add(self, link: _Link) -> None:
        self._links[link.connection] = link
        self._set_interest(link)

    def _serve_socket(self, link: _Link, events: int) -> None:
        try:
            if events & selectors.EVENT_WRITE:
                link.flush()
            if events & selectors.EVENT_READ:
                chunk = link.socket.recv(RECEIVE_BYTES)
                if not chunk:
                    self._drop(link)
                    return
                link.decoder.feed(chunk)
                self._runnable[link] = None
        except BlockingIOError:
            pass
        except OSError:
            self._drop(link)
            return
        self._set_interest(link)

    def _take_turns(self) -> None:
        for link in list(self._runnable):
            try:
                self._take_turn(link)
            except PeerProtocolError:
                self._drop(link)

    def _take_turn(self, link: _Link) -> None:
        for _ in range(MESSAGES_PER_TURN):
            wait_s = math.inf if len(link.output) >= OUTPUT_BYTES else self._server.read_delay_s(link.connection)
            if wait_s:
                link.due_s = time.monotonic() + wait_s
                self._delayed[link] = None
            message = link.decoder.next_message() if not wait_s else None
            if message is None:
                del self._runnable[link]
                self._set_interest(link)
                return
            self._server.receive(link.connection, message)
            link.fill()

    def _send_ready(self) -> None:
        for connection in self._server.take_ready():
            link = self._links.get(connection)
            if link is None:
                continue
            try:
                link.flush()
            except OSError:
                self._drop(link)
                continue
            if connection.is_closed:
                self._drop(link)
            else:
                self._set_interest(link)

    def _revive(self) -> None:
        """Let those take requests again who have waited long enough or have read their replies."""
        now_s = time.monotonic()
        if now_s - self._expired_s >= EXPIRY_S:
            self._expired_s = now_s
            for link in self._unread:
                self._server.expire_events(link.connection)
        for link in list(self._delayed):
            if link.due_s <= now_s or (link.due_s == math.inf and not link.output):
                del self._delayed[link]
                self._runnable[link] = None

    def _set_interest(self, link: _Link) -> None:
        """Ask the selector for what this link can use now."""
        if link.output:
            self._unread[link] = None
        else:
            self._unread.pop(link, None)
        reads = link not in self._delayed and link not in self._runnable
        wanted = (selectors.EVENT_READ if reads else 0) | (selectors.EVENT_WRITE if link.output else 0)
        if wanted == link.interest:
            return
        if not wanted:
            self._selector.unregister(link.socket)
        elif link.interest:
            self._selector.modify(link.socket, wanted, link)
        else:
            self._selector.register(link.socket, wanted, link)
        link.interest = wanted

    def _drop(self, link: _Link) -> None:
        if self._links.pop(link.connection, None) is None:
            return
        if link.interest:
            self._selector.unregister(link.socket)
        self._runnable.pop(link, None)
        self._delayed.pop(link, None)
        self._unread.pop(link, None)
        link.socket.close()
        self._server.disconnect(link.connection)

    def _close_all(self) -> None:
        for link in list(self._links.values()):
            with suppress(OSError):
                link.flush()
            # the server keeps the connection's watches, so that a state dumped now has them
            link.socket.close()
        for listener, (path, _, _) in self._listeners.items():
            listener.close()
            path.unlink(missing_ok=True)
        self._selector.close()
