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
    guest_end,
    server_end,
)
from xenvirtio.errors import PeerProtocolError


class Page:
    """A page with both ends, and how often each has notified."""

    def __init__(self) -> None:
        self.bytes = bytearray(4096)
        self.notified: list[str] = []
        view = memoryview(self.bytes)
        self.guest: GuestEnd = guest_end(view, lambda: self.notified.append("guest"))
        self.server: ServerEnd = server_end(view, lambda: self.notified.append("server"))

    def word(self, offset: int) -> int:
        return int(struct.unpack_from("<I", self.bytes, offset)[0])

    def put(self, offset: int, value: int) -> None:
        struct.pack_into("<I", self.bytes, offset, value)


def test_the_layout() -> None:
    page = Page()
    page.guest.send(b"request")
    page.server.send(b"answer")
    assert page.bytes[0:7] == b"request"
    assert page.bytes[1024:1030] == b"answer"
    assert [page.word(offset) for offset in (2048, 2052, 2056, 2060)] == [0, 7, 0, 6]
    assert page.server.receive() == b"request"
    assert page.guest.receive() == b"answer"
    assert [page.word(offset) for offset in (2048, 2052, 2056, 2060)] == [7, 7, 6, 6]
    assert page.notified == ["guest", "server", "server", "guest"]


def test_nothing_to_do_notifies_nobody() -> None:
    page = Page()
    assert page.guest.receive() == b""
    assert page.guest.send(b"") == 0
    assert page.notified == []


def test_a_full_ring_takes_what_fits() -> None:
    page = Page()
    assert page.guest.send(b"x" * 1500) == RING_BYTES
    assert page.guest.send(b"y") == 0
    assert page.server.receive() == b"x" * RING_BYTES


@pytest.mark.parametrize("start", [0, 1000, 0xFFFFFFFF, 0xFFFFFE00])
def test_indices_may_start_anywhere_and_wrap(start: int) -> None:
    page = Page()
    page.put(REQUEST_CONSUMER, start)
    page.put(REQUEST_PRODUCER, start)
    sent = bytes(range(256)) * 4
    assert page.guest.send(sent) == 1024
    assert page.server.receive() == sent
    assert page.word(REQUEST_CONSUMER) == (start + 1024) & 0xFFFFFFFF


@given(st.lists(st.tuples(st.booleans(), st.binary(max_size=700)), max_size=20), st.integers(0, 0xFFFFFFFF))
def test_a_stream_arrives_whole(steps: list[tuple[bool, bytes]], start: int) -> None:
    page = Page()
    page.put(REQUEST_CONSUMER, start)
    page.put(REQUEST_PRODUCER, start)
    sent, received = b"", b""
    for sends, data in steps:
        if sends:
            sent += data[: page.guest.send(data)]
        else:
            received += page.server.receive()
    assert received + page.server.receive() == sent


@pytest.mark.parametrize(("consumer", "producer"), [(0, 1025), (1, 0), (5, 0x80000000)])
def test_impossible_indices_are_an_error_of_the_peer(consumer: int, producer: int) -> None:
    page = Page()
    page.put(REQUEST_CONSUMER, consumer)
    page.put(REQUEST_PRODUCER, producer)
    page.put(RESPONSE_CONSUMER, consumer)
    page.put(RESPONSE_PRODUCER, producer)
    with pytest.raises(PeerProtocolError):
        page.server.receive()
    with pytest.raises(PeerProtocolError):
        page.server.send(b"x")


def test_a_reset_empties_the_rings_and_then_says_connected() -> None:
    page = Page()
    page.guest.send(b"old")
    page.guest.ask_reconnect()
    assert page.server.wants_reconnect
    assert not page.guest.is_connected
    page.server.reset()
    assert page.guest.is_connected
    assert page.server.receive() == b""
    assert page.word(CONNECTION) == 0


def test_features_are_only_added_and_errors_are_told() -> None:
    page = Page()
    page.server.advertise(2)
    page.server.advertise(4)
    assert page.word(SERVER_FEATURES) == 6
    page.server.fail(RingError.PROTOCOL)
    assert page.word(ERROR) == 3
    assert not page.guest.is_connected
