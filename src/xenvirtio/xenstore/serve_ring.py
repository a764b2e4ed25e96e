"""A domain's ring as carrier of its XenStore connection.

What is taken out of the ring and what is put in is kept in the connection's `RingStream`, which the journal records
before the ring shows it: a successor of a killed server goes on at the very byte (`stream`).

A ring is opened in two steps, since a guest may use it from the moment it reads that it is connected: first the state
says that the ring is to be reset; then it is reset and the state says that it stands at 0; then the guest is told. A
kill at any point leaves either a ring that the guest does not use yet, and that is reset again, or one that goes on.

The domain is not trusted: it can write anywhere in the page, at any time. A wrong index or message ends its connection,
with the reason in the page's error word, until it asks for a new one (or its toolstack introduces it again).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from xenvirtio.channels.xenstore_ring import RING_BYTES, RingError, RingIndexError, ServerEnd, distance
from xenvirtio.errors import PeerProtocolError
from xenvirtio.xenstore.connection import Connection
from xenvirtio.xenstore.quota import exceeds
from xenvirtio.xenstore.serve_link import Link
from xenvirtio.xenstore.server import XenStoreServer
from xenvirtio.xenstore.stream import POSITION_MASK, RingStream
from xenvirtio.xenstore.wire import Message, MessageDecoder, MessageType

EVENT_BYTES = 4096
"""While less is unsent, events follow it. The rest stays in the connection's queue, where equal ones are one and old
ones expire."""

OUTPUT_BYTES = 16384
"""Beyond this many unsent bytes no further request is taken; the domain has to read first."""


class RingLink(Link):
    """A ring in use, one about to be reset (no stream yet), or one that is not listened to (refused)."""

    def __init__(
        self,
        server: XenStoreServer,
        connection: Connection,
        end: ServerEnd,
        *,
        wake: Callable[[Link], None],
        again: Callable[[Link], None],
        release: Callable[[], None],
    ) -> None:
        """`connection.stream` says where to go on; None: the ring is to be reset before use.

        `wake` asks for another round of the pump, `again` for another turn unless it is delayed, `release` gives up
        page and event channel.
        """
        super().__init__(connection)
        self._server = server
        self._end = end
        self._wake = wake
        self._again = again
        self._release = release
        self._decoder = MessageDecoder()
        self._seen = 0
        """The decoder has the requests up to here."""
        self._filled = self._sent = 0
        self._reply_ends: deque[int] = deque()
        """Up to which count of `_sent` each unread reply reaches: the quota bounds how many there are."""
        self._is_refused = self._is_closed = False
        self._tells_connected = False
        self._recorded: tuple[int, bytes, bool] | None = None
        """What the state has of the stream, besides its output."""
        if connection.stream is not None:
            self._resume(connection.stream)

    def _resume(self, stream: RingStream) -> None:
        if self._end.has_failed:
            self._stop_listening()
        elif stream.covers(announced := self._end.announced):
            stream.skip_to(announced)
            self._end.resume(stream.consumed, stream.produced)
            self._end.advertise(self._server.features_of(self.connection))
            self._decoder.feed(stream.partial)
            self._seen = stream.consumed
            self._filled = len(stream.unsent)
        else:
            self._fail(RingError.INDEX)

    @property
    def is_refused(self) -> bool:
        """Is the domain not listened to, for what it did?"""
        return self._is_refused

    @property
    def has_unsent(self) -> bool:
        stream = self.connection.stream
        return stream is not None and (bool(stream.unsent) or len(self.connection.outgoing) > 0)

    @property
    def is_congested(self) -> bool:
        stream = self.connection.stream
        if stream is None:
            return False
        quota = self._server.quota_of(self.connection)
        return len(stream.unsent) >= OUTPUT_BYTES or exceeds(len(self._reply_ends), quota.outstanding)

    def restart(self) -> None:
        """Forget watches, transactions and what was under way; the ring is reset once that is kept."""
        self._drop_all()
        self.connection.stream = None
        self._is_refused = False
        self._recorded = None
        self._server.recorder.ring_moved(self.connection.domid, None)
        self._wake(self)

    # -- requests

    def next_message(self) -> Message | None:
        self._look_for_reconnect()
        if self._stream_in_use() is None:
            return None
        message = self._decoder.next_message()
        if message is None and self._receive():
            message = self._decoder.next_message()
        return message

    def _receive(self) -> bool:
        data = self._end.peek(self._seen)
        self._decoder.feed(data)
        self._seen = (self._seen + len(data)) & POSITION_MASK
        return bool(data)

    def _look_for_reconnect(self) -> None:
        is_open = self.connection.stream is not None and not self._is_closed and not self._tells_connected
        if is_open and self._end.wants_reconnect:
            self.restart()

    def _stream_in_use(self) -> RingStream | None:
        return None if self._is_refused or self._is_closed else self.connection.stream

    # -- replies and events

    def fill(self) -> None:
        stream, outgoing = self._stream_in_use(), self.connection.outgoing
        if stream is None:
            return
        while outgoing.replies or len(stream.unsent) < EVENT_BYTES:
            message = outgoing.pop()
            if message is None:
                break
            encoded = message.encode()
            stream.unsent += encoded
            self._filled += len(encoded)
            if message.type != MessageType.WATCH_EVENT:
                self._reply_ends.append(self._filled)
        stream.has_waiting = len(outgoing) > 0

    def prepare(self) -> None:
        self._look_for_reconnect()
        self.fill()
        stream = self._stream_in_use()
        if stream is None:
            return
        self._take_account(stream)
        now = stream.consumed, stream.partial, stream.has_waiting
        if now != self._recorded or len(stream.unsent) != stream.recorded_bytes:
            self._recorded = now
            self._server.recorder.ring_moved(self.connection.domid, stream)

    def _take_account(self, stream: RingStream) -> None:
        """Say up to where requests are dealt with: to the end of the last one handled; of all that is there when the
        next one is not whole, since a guest tells of more only once it sees everything taken (and it may be longer than
        the ring)."""
        pending = self._decoder.pending_bytes
        first = (self._seen - pending) & POSITION_MASK
        announced = self._decoder.announced_bytes
        if pending and (not announced or announced > pending):
            stream.consumed = self._seen
        elif distance(stream.consumed, first) <= RING_BYTES:  # not back before what was taken out already
            stream.consumed = first
        stream.partial = self._decoder.pending[: distance(first, stream.consumed)]

    def settle(self) -> bool:
        if self.connection.stream is not None or self._is_closed:
            return False
        self._end.reset()
        self._end.advertise(self._server.features_of(self.connection))
        self._tells_connected = True
        self.connection.stream = RingStream()
        self.prepare()
        return True

    def flush(self) -> None:
        stream = self._stream_in_use()
        if stream is None:
            return
        if self._tells_connected:
            self._tells_connected = False
            self._end.connect()
        length = self._end.publish(stream.consumed, stream.unsent)
        stream.sent(length)
        self._sent += length
        while self._reply_ends and self._reply_ends[0] <= self._sent:
            self._reply_ends.popleft()
        has_events = len(self.connection.outgoing) and len(stream.unsent) < EVENT_BYTES
        if has_events:
            self._wake(self)
        # A Linux guest notifies only when all that it had sent was consumed (xb_write in xenbus_comms.c): what came
        # after our last look and before this announcement is told by nobody.
        if self._end.has_more(self._seen):
            self._again(self)

    def set_interest(self, *, reads: bool) -> None:
        """An event channel tells of everything, and costs a hostile domain more than us."""

    # -- the end

    def refuse(self, error: PeerProtocolError) -> bool:
        self._fail(RingError.INDEX if isinstance(error, RingIndexError) else RingError.PROTOCOL)
        return False

    def _fail(self, reason: RingError) -> None:
        self._stop_listening()
        self._end.fail(reason)

    def _stop_listening(self) -> None:
        self._drop_all()
        self._is_refused = True

    def _drop_all(self) -> None:
        self._server.reset(self.connection)
        while self.connection.outgoing.pop() is not None:
            pass
        if self.connection.stream is not None:
            self.connection.stream.unsent.clear()
            self.connection.stream.recorded_bytes = 0
        self._decoder = MessageDecoder()
        self._reply_ends.clear()
        self._seen = self._filled = self._sent = 0

    def close(self) -> None:
        if not self._is_closed:
            self._is_closed = True  # the page is not looked at any more
            self._release()
