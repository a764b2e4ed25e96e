"""Unix sockets as carriers of XenStore connections."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from pathlib import Path

from xenvirtio.errors import PeerProtocolError
from xenvirtio.xenstore.connection import Connection
from xenvirtio.xenstore.serve_link import Link
from xenvirtio.xenstore.serve_poll import READABLE, WRITABLE, Poller
from xenvirtio.xenstore.wire import Message, MessageDecoder, MessageType

RECEIVE_BYTES = 16384
OUTPUT_BYTES = 65536
"""Beyond this many unsent bytes no further request of a client is taken; it has to read first."""
EVENTS_PER_ROUND = 16
"""A domain that watches one node with all it has gets its events bit by bit, and those that come anew meanwhile are the
same as those that wait. Otherwise each write of somebody else cost that one the time of as many messages."""
BACKLOG = 64

_WATCH_EVENT = int(MessageType.WATCH_EVENT)


class SocketLink(Link):
    """A connected stream socket."""

    def __init__(
        self,
        connection: Connection,
        carrier: socket.socket,
        poller: Poller,
        ready: Callable[[Link, int], None],
    ) -> None:
        """`ready` gets the link and what the poller told."""
        super().__init__(connection)
        carrier.setblocking(False)
        self._socket = carrier
        self._poller = poller
        self._ready = ready
        self._decoder = MessageDecoder()
        self._output = bytearray()
        self._interest = 0

    @property
    def has_unsent(self) -> bool:
        return bool(self._output)

    @property
    def wants_another_round(self) -> bool:
        return not self._output and len(self.connection.outgoing) > 0

    @property
    def is_congested(self) -> bool:
        return len(self._output) >= OUTPUT_BYTES

    def receive(self) -> bool:
        """Take what has arrived; False when the client has closed. Raises OSError when it is gone."""
        try:
            chunk = self._socket.recv(RECEIVE_BYTES)
        except BlockingIOError:
            return True
        self._decoder.feed(chunk)
        return bool(chunk)

    def next_message(self) -> Message | None:
        return self._decoder.next_message()

    def fill(self) -> None:
        """Take over what the connection has to say, as far as there is room and it is its turn."""
        outgoing, events = self.connection.outgoing, 0
        may_flood = self.connection.privileged
        while len(self._output) < OUTPUT_BYTES and (may_flood or outgoing.replies or events < EVENTS_PER_ROUND):
            message = outgoing.pop()
            if message is None:
                break
            self._output += message.encode()
            events += message.type == _WATCH_EVENT

    def refuse(self, error: PeerProtocolError) -> bool:
        return True

    def flush(self) -> None:
        self.fill()
        while self._output:
            try:
                sent = self._socket.send(self._output, socket.MSG_NOSIGNAL)
            except BlockingIOError:
                return
            del self._output[:sent]
            if self.connection.privileged and self.connection.outgoing:
                self.fill()

    def set_interest(self, *, reads: bool) -> None:
        wanted = (READABLE if reads else 0) | (WRITABLE if self._output else 0)
        if wanted != self._interest:
            self._poller.ask(self._socket.fileno(), wanted, self._on_event)
            self._interest = wanted

    def _on_event(self, events: int) -> None:
        self._ready(self, events)

    def close(self) -> None:
        if self._interest:
            self._poller.ask(self._socket.fileno(), 0, self._on_event)
            self._interest = 0
        self._socket.close()


def listen(place: Path) -> socket.socket:
    """Return a listening socket at a path, of mode 0600. A stale socket is replaced.

    Raises:
        OSError: the path cannot be used; EADDRINUSE when another server listens there.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if place.is_socket():
            _remove_stale(place)
        os.fchmod(listener.fileno(), 0o600)  # before the path exists
        listener.bind(str(place))
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except OSError:
        listener.close()
        raise
    return listener


def _remove_stale(path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        if probe.connect_ex(str(path)) == 0:
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE), str(path))
    path.unlink()
