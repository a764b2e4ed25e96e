"""The XenStore ring page: two rings of 1024 bytes that a guest and the server share.

Indices are free-running 32-bit numbers and may start anywhere: they are positions in two byte streams. Data is written
before the index that announces it; that needs a memory barrier on arm64, which is the caller's (`fence`), as is the
event channel (`notify`).

A guest can write anywhere in the page at any time. So the server keeps its own two indices to itself and only ever
writes them; of the guest's two each is read once and then checked.

Source: xen/include/public/io/xs_wire.h, struct xenstore_domain_interface.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum

from xenvirtio.errors import PeerProtocolError

RING_BYTES = 1024
REQUESTS, RESPONSES = 0, 1024
REQUEST_CONSUMER, REQUEST_PRODUCER = 2048, 2052
RESPONSE_CONSUMER, RESPONSE_PRODUCER = 2056, 2060
SERVER_FEATURES, CONNECTION, ERROR, EVENT_PORT = 2064, 2068, 2072, 2076

MASK = 0xFFFFFFFF


class ConnectionState(IntEnum):
    """The word by which a guest asks for a new connection."""

    CONNECTED = 0
    RECONNECT = 1


class RingError(IntEnum):
    """Why the server has stopped listening to a guest."""

    NONE = 0
    COMMUNICATION = 1
    INDEX = 2
    PROTOCOL = 3


def distance(start: int, end: int) -> int:
    """Return how many bytes lie from one stream position to a later one."""
    return (end - start) & MASK


class RingIndexError(PeerProtocolError):
    """The other end has written an index that cannot be."""


class _Page:
    """The words and the two rings of a page."""

    def __init__(self, page: memoryview) -> None:
        self._bytes = page.cast("B")
        self._words = self._bytes.cast("I")

    def __getitem__(self, offset: int) -> int:
        return self._words[offset // 4]

    def __setitem__(self, offset: int, value: int) -> None:
        self._words[offset // 4] = value & MASK

    def copy_out(self, ring: int, position: int, length: int) -> bytes:
        start = position % RING_BYTES
        first = min(length, RING_BYTES - start)
        head = self._bytes[ring + start : ring + start + first]
        return bytes(head) + bytes(self._bytes[ring : ring + length - first])

    def copy_in(self, ring: int, position: int, data: bytes | bytearray | memoryview) -> None:
        start = position % RING_BYTES
        first = min(len(data), RING_BYTES - start)
        self._bytes[ring + start : ring + start + first] = data[:first]
        self._bytes[ring : ring + len(data) - first] = data[first:]


class GuestEnd:
    """The guest's end. It trusts the server, and notifies as sparingly as Linux does: of requests only when the server
    has taken all before them, of room for replies only when there was none. So who serves has to look again after each
    index that it has written.

    Source: Linux drivers/xen/xenbus/xenbus_comms.c (6.12).
    """

    def __init__(self, page: memoryview, notify: Callable[[], None], fence: Callable[[], None] = lambda: None) -> None:
        self.words = _Page(page)
        self._notify = notify
        self._fence = fence

    @property
    def is_connected(self) -> bool:
        """Does the server listen? Nothing is to be sent before."""
        return self.words[CONNECTION] == ConnectionState.CONNECTED and self.words[ERROR] == RingError.NONE

    def ask_reconnect(self) -> None:
        """Ask for a fresh connection. Only when the server offers `Feature.RECONNECTION`."""
        self.words[CONNECTION] = ConnectionState.RECONNECT
        self._notify()

    def receive(self) -> bytes:
        """Take what has arrived.

        Raises:
            RingIndexError: the indices cannot be.
        """
        consumer = self.words[RESPONSE_CONSUMER]
        length = _used(consumer, self.words[RESPONSE_PRODUCER])
        if not length:
            return b""
        self._fence()
        data = self.words.copy_out(RESPONSES, consumer, length)
        self._fence()
        self.words[RESPONSE_CONSUMER] = consumer + length
        self._fence()
        if distance(consumer, self.words[RESPONSE_PRODUCER]) >= RING_BYTES:
            self._notify()
        return data

    def send(self, data: bytes) -> int:
        """Put in what fits; return how many bytes that was.

        Raises:
            RingIndexError: the indices cannot be.
        """
        producer = self.words[REQUEST_PRODUCER]
        length = min(len(data), RING_BYTES - _used(self.words[REQUEST_CONSUMER], producer))
        if not length:
            return 0
        self._fence()
        self.words.copy_in(REQUESTS, producer, data[:length])
        self._fence()
        self.words[REQUEST_PRODUCER] = producer + length
        self._fence()
        if self.words[REQUEST_CONSUMER] == producer:
            self._notify()
        return length


class ServerEnd:
    """The server's end. `consumed` and `produced` are where it stands; nothing is written to the page by making one."""

    def __init__(
        self,
        page: memoryview,
        notify: Callable[[], None],
        fence: Callable[[], None] = lambda: None,
        *,
        consumed: int = 0,
        produced: int = 0,
    ) -> None:
        self.words = _Page(page)
        self.consumed = consumed
        self.produced = produced
        self._notify = notify
        self._fence = fence

    @property
    def wants_reconnect(self) -> bool:
        """Does the guest wait for `reset` and `connect`?"""
        return self.words[CONNECTION] == ConnectionState.RECONNECT

    @property
    def has_failed(self) -> bool:
        """Was the guest told that it is not listened to any more?"""
        return self.words[ERROR] != RingError.NONE

    @property
    def announced(self) -> int:
        """How far the page says that was sent. Ours, but where a guest can write: to be checked by who knows better."""
        return self.words[RESPONSE_PRODUCER]

    def resume(self, consumed: int, produced: int) -> None:
        """Go on in a ring that a predecessor has served. The guest is told to look: events may have been lost."""
        self.words[REQUEST_CONSUMER] = self.consumed = consumed
        self.produced = produced
        self._notify()

    def advertise(self, features: int) -> None:
        """Tell what the server offers. Bits are only ever added."""
        self.words[SERVER_FEATURES] = self.words[SERVER_FEATURES] | features

    def peek(self, position: int) -> bytes:
        """Return what the guest has sent from a stream position on; it stays in the ring until `publish`.

        Raises:
            RingIndexError: the guest's index cannot be.
        """
        producer = self.words[REQUEST_PRODUCER]
        length = distance(position, producer)
        if length > RING_BYTES - distance(self.consumed, position):
            raise RingIndexError(f"XenStore ring: request producer {producer}, consumed {self.consumed}")
        if not length:
            return b""
        self._fence()
        return self.words.copy_out(REQUESTS, position, length)

    def publish(self, consumed: int, data: bytes | bytearray | memoryview) -> int:
        """Give the guest back the room before `consumed`, and put in what fits of `data`; return how many bytes that
        was. One notification for both, none when nothing has changed.

        Raises:
            RingIndexError: the guest's index cannot be.
        """
        has_consumed = consumed != self.consumed
        if has_consumed:
            self._fence()
            self.words[REQUEST_CONSUMER] = self.consumed = consumed
        length = 0
        while length < len(data) and (put := self._put(data[length:])):
            length += put  # again: the guest may have made room meanwhile, and does not tell unless the ring was full
        if has_consumed or length:
            self._notify()
        return length

    def has_more(self, position: int) -> bool:
        """Has the guest sent anything beyond a position? To be asked after `publish`: until the guest saw what was
        consumed it did not notify."""
        self._fence()
        return self.words[REQUEST_PRODUCER] != position

    def _put(self, data: bytes | bytearray | memoryview) -> int:
        length = min(len(data), RING_BYTES - _used(self.words[RESPONSE_CONSUMER], self.produced))
        if length:
            self._fence()
            self.words.copy_in(RESPONSES, self.produced, data[:length])
            self._fence()
            self.produced = (self.produced + length) & MASK
            self.words[RESPONSE_PRODUCER] = self.produced
            self._fence()
        return length

    def reset(self) -> None:
        """Empty both rings. The guest is to use them only after `connect`."""
        for index in (REQUEST_CONSUMER, REQUEST_PRODUCER, RESPONSE_CONSUMER, RESPONSE_PRODUCER, ERROR):
            self.words[index] = 0
        self.consumed = self.produced = 0

    def connect(self) -> None:
        """Say that the connection stands: a guest may use it from that word on."""
        self._fence()
        self.words[CONNECTION] = ConnectionState.CONNECTED
        self._notify()

    def fail(self, reason: RingError) -> None:
        """Tell the guest why it is not listened to any more."""
        self.words[ERROR] = reason
        self._notify()


def _used(consumer: int, producer: int) -> int:
    length = distance(consumer, producer)
    if length > RING_BYTES:
        raise RingIndexError(f"XenStore ring indices {consumer} and {producer}")
    return length
