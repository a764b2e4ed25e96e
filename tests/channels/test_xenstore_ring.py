from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xenvirtio.channels.xenstore_ring import (
    CONNECTION,
    ERROR,
    REQUEST_CONSUMER,
    REQUEST_PRODUCER,
    RESPONSE_CONSUMER,
    RESPONSE_PRODUCER,
    RING_BYTES,
    SERVER_FEATURES,
    GuestEnd,
    RingError,
    ServerEnd,
)
from xenvirtio.errors import PeerProtocolError


class Page:
    """A page with both ends, and how often each has notified."""

    def __init__(self) -> None:
        self.bytes = bytearray(4096)
        self.notified: list[str] = []
        view = memoryview(self.bytes)
        self.guest = GuestEnd(view, lambda: self.notified.append("guest"))
        self.server = ServerEnd(view, lambda: self.notified.append("server"))

    def start_at(self, position: int) -> None:
        """Let both streams stand somewhere, as in the middle of a life."""
        for offset in (REQUEST_CONSUMER, REQUEST_PRODUCER, RESPONSE_CONSUMER, RESPONSE_PRODUCER):
            self.put(offset, position)
        self.server.consumed = self.server.produced = position

    def taken(self) -> bytes:
        """What the server finds; it makes room at once."""
        data = self.server.peek(self.server.consumed)
        self.server.publish((self.server.consumed + len(data)) & 0xFFFFFFFF, b"")
        return data

    def word(self, offset: int) -> int:
        return int(struct.unpack_from("<I", self.bytes, offset)[0])

    def put(self, offset: int, value: int) -> None:
        struct.pack_into("<I", self.bytes, offset, value)


def test_the_layout() -> None:
    page = Page()
    page.guest.send(b"request")
    page.server.publish(page.server.consumed, b"answer")
    assert page.bytes[0:7] == b"request"
    assert page.bytes[1024:1030] == b"answer"
    assert [page.word(offset) for offset in (2048, 2052, 2056, 2060)] == [0, 7, 0, 6]
    assert page.taken() == b"request"
    assert page.guest.receive() == b"answer"
    assert [page.word(offset) for offset in (2048, 2052, 2056, 2060)] == [7, 7, 6, 6]
    assert page.notified == ["guest", "server", "server"]


def test_nothing_to_do_notifies_nobody() -> None:
    page = Page()
    assert page.guest.receive() == b""
    assert page.guest.send(b"") == 0
    assert page.notified == []


def test_a_full_ring_takes_what_fits() -> None:
    page = Page()
    assert page.guest.send(b"x" * 1500) == RING_BYTES
    assert page.guest.send(b"y") == 0
    assert page.taken() == b"x" * RING_BYTES


@pytest.mark.parametrize("start", [0, 1000, 0xFFFFFFFF, 0xFFFFFE00])
def test_indices_may_start_anywhere_and_wrap(start: int) -> None:
    page = Page()
    page.start_at(start)
    sent = bytes(range(256)) * 4
    assert page.guest.send(sent) == 1024
    assert page.taken() == sent
    assert page.word(REQUEST_CONSUMER) == (start + 1024) & 0xFFFFFFFF


@given(st.lists(st.tuples(st.booleans(), st.binary(max_size=700)), max_size=20), st.integers(0, 0xFFFFFFFF))
def test_a_stream_arrives_whole(steps: list[tuple[bool, bytes]], start: int) -> None:
    page = Page()
    page.start_at(start)
    sent, received = b"", b""
    for sends, data in steps:
        if sends:
            sent += data[: page.guest.send(data)]
        else:
            received += page.taken()
    assert received + page.taken() == sent


@pytest.mark.parametrize(("consumer", "producer"), [(0, 1025), (1, 0), (5, 0x80000000)])
def test_impossible_indices_are_an_error_of_the_peer(consumer: int, producer: int) -> None:
    page = Page()
    page.put(REQUEST_CONSUMER, consumer)
    page.put(REQUEST_PRODUCER, producer)
    page.put(RESPONSE_CONSUMER, consumer + 1)  # more than was ever sent
    page.server.consumed = page.server.produced = consumer
    with pytest.raises(PeerProtocolError):
        page.taken()
    with pytest.raises(PeerProtocolError):
        page.server.publish(page.server.consumed, b"x")
    with pytest.raises(PeerProtocolError):
        page.guest.send(b"x")


def test_the_server_never_believes_its_own_indices_in_the_page() -> None:
    page = Page()
    page.guest.send(b"request")
    page.put(REQUEST_CONSUMER, 5)
    page.put(RESPONSE_PRODUCER, 900)
    assert page.taken() == b"request"
    page.server.publish(page.server.consumed, b"answer")
    assert page.word(REQUEST_CONSUMER) == 7
    assert page.word(RESPONSE_PRODUCER) == 6


def test_a_look_takes_nothing_and_goes_on_where_the_last_one_ended() -> None:
    page = Page()
    page.guest.send(b"first")
    assert page.server.peek(0) == b"first"
    page.guest.send(b"second")
    assert page.server.peek(5) == b"second"
    assert page.word(REQUEST_CONSUMER) == 0
    page.put(REQUEST_PRODUCER, 3)  # behind what was seen already
    with pytest.raises(PeerProtocolError):
        page.server.peek(11)


def test_one_notification_tells_of_room_and_of_data() -> None:
    page = Page()
    page.guest.send(b"request")
    page.notified.clear()
    assert page.server.publish(7, b"answer") == 6
    assert page.notified == ["server"]
    page.server.publish(7, b"")
    assert page.notified == ["server"]


def test_a_reset_empties_the_rings_and_connected_is_said_later() -> None:
    page = Page()
    page.guest.send(b"old")
    page.guest.ask_reconnect()
    assert page.server.wants_reconnect
    page.server.reset()
    assert not page.guest.is_connected
    page.server.connect()
    assert page.guest.is_connected
    assert page.taken() == b""
    assert page.word(CONNECTION) == 0


def test_features_are_only_added_and_errors_are_told() -> None:
    page = Page()
    page.server.advertise(2)
    page.server.advertise(4)
    assert page.word(SERVER_FEATURES) == 6
    page.server.fail(RingError.PROTOCOL)
    assert page.word(ERROR) == 3
    assert not page.guest.is_connected
