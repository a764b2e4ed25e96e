"""The XenStore ring page: two rings of 1024 bytes that a guest and the server share.

Indices are free-running 32-bit numbers and may start anywhere. The other side is not trusted: each index is read once
and checked. Data is written before the index that announces it; that needs a memory barrier on arm64, which is the
caller's (`fence`), as is the event channel (`notify`).

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


class _Words:
    """32-bit words of the page."""

    def __init__(self, page: memoryview) -> None:
        self._words = page.cast("B").cast("I")

    def __getitem__(self, offset: int) -> int:
        return self._words[offset // 4]

    def __setitem__(self, offset: int, value: int) -> None:
        self._words[offset // 4] = value & 0xFFFFFFFF


class RingEnd:
    """One end: what it receives from and what it sends to the other. Made by `guest_end` and `server_end`."""

    def __init__(
        self,
        page: memoryview,
        notify: Callable[[], None],
        fence: Callable[[], None],
        incoming: tuple[int, int, int],
        outgoing: tuple[int, int, int],
    ) -> None:
        self._bytes = page.cast("B")
        self.words = _Words(page)
        self._notify = notify
        self._fence = fence
        self._in_data, self._in_consumer, self._in_producer = incoming
        self._out_data, self._out_consumer, self._out_producer = outgoing

    def receive(self) -> bytes:
        """Take what has arrived.

        Raises:
            PeerProtocolError: the indices cannot be.
        """
        consumer, producer = self.words[self._in_consumer], self.words[self._in_producer]
        length = self._used(consumer, producer)
        if not length:
            return b""
        self._fence()
        start = consumer % RING_BYTES
        first = min(length, RING_BYTES - start)
        base = self._in_data
        data = bytes(self._bytes[base + start : base + start + first]) + bytes(
            self._bytes[base : base + length - first]
        )
        self._fence()
        self.words[self._in_consumer] = consumer + length
        self._notify()
        return data

    def send(self, data: bytes) -> int:
        """Put in what fits; return how many bytes that was.

        Raises:
            PeerProtocolError: the indices cannot be.
        """
        consumer, producer = self.words[self._out_consumer], self.words[self._out_producer]
        length = min(len(data), RING_BYTES - self._used(consumer, producer))
        if not length:
            return 0
        self._fence()
        start = producer % RING_BYTES
        first = min(length, RING_BYTES - start)
        base = self._out_data
        self._bytes[base + start : base + start + first] = data[:first]
        self._bytes[base : base + length - first] = data[first:length]
        self._fence()
        self.words[self._out_producer] = producer + length
        self._notify()
        return length

    def _used(self, consumer: int, producer: int) -> int:
        length = (producer - consumer) & 0xFFFFFFFF
        if length > RING_BYTES:
            raise PeerProtocolError(f"XenStore ring indices {consumer} and {producer}")
        return length


class GuestEnd(RingEnd):
    """The guest's end."""

    @property
    def is_connected(self) -> bool:
        """Does the server listen? Nothing is to be sent before."""
        return self.words[CONNECTION] == ConnectionState.CONNECTED and self.words[ERROR] == RingError.NONE

    def ask_reconnect(self) -> None:
        """Ask for a fresh connection. Only when the server offers `Feature.RECONNECTION`."""
        self.words[CONNECTION] = ConnectionState.RECONNECT
        self._notify()


class ServerEnd(RingEnd):
    """The server's end."""

    @property
    def wants_reconnect(self) -> bool:
        """Does the guest wait for `reset`?"""
        return self.words[CONNECTION] == ConnectionState.RECONNECT

    def advertise(self, features: int) -> None:
        """Tell what the server offers. Bits are only ever added."""
        self.words[SERVER_FEATURES] = self.words[SERVER_FEATURES] | features

    def reset(self) -> None:
        """Empty both rings, then say that the connection stands: a guest may use it from that word on."""
        for index in (REQUEST_CONSUMER, REQUEST_PRODUCER, RESPONSE_CONSUMER, RESPONSE_PRODUCER, ERROR):
            self.words[index] = 0
        self._fence()
        self.words[CONNECTION] = ConnectionState.CONNECTED
        self._notify()

    def fail(self, reason: RingError) -> None:
        """Tell the guest why it is not listened to any more."""
        self.words[ERROR] = reason
        self._notify()


def guest_end(page: memoryview, notify: Callable[[], None], fence: Callable[[], None] = lambda: None) -> GuestEnd:
    """Return the end that sends requests."""
    requests = REQUESTS, REQUEST_CONSUMER, REQUEST_PRODUCER
    responses = RESPONSES, RESPONSE_CONSUMER, RESPONSE_PRODUCER
    return GuestEnd(page, notify, fence, responses, requests)


def server_end(page: memoryview, notify: Callable[[], None], fence: Callable[[], None] = lambda: None) -> ServerEnd:
    """Return the end that answers."""
    requests = REQUESTS, REQUEST_CONSUMER, REQUEST_PRODUCER
    responses = RESPONSES, RESPONSE_CONSUMER, RESPONSE_PRODUCER
    return ServerEnd(page, notify, fence, requests, responses)
