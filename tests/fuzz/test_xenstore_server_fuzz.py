"""Whatever several clients send at once, in whatever pieces: the others are served, and the store stays whole."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from xenvirtio.ids import DomId
from xenvirtio.xenstore.serve import XenStoreService
from xenvirtio.xenstore.wire import HEADER_SIZE, Message, MessageDecoder, MessageType

CALLERS = (0, 3, 3, 4)
"""The domains that send; the first is privileged."""

words = st.sampled_from(
    [
        *(b"/", b"/a", b"a/b", b"/a/b/c", b"/local/domain/3", b"/local/domain/3/x", b"@releaseDomain"),
        *(b"n0", b"r3", b"b32757", b"3", b"4", b"0", b"-1", b"1", b"65535", b"65536", b"9" * 30, b"T", b"F", b""),
        *(b"//", b"\xff", b"x" * 2100, b"y" * 4000),
        *(b"check", b"quota", b"set", b"nodes", b"log", b"on", b"off", b"memreport"),
    ]
)
payloads = st.builds(
    lambda parts, last: (b"\0".join(parts) + last)[:4096], st.lists(words, max_size=5), st.sampled_from([b"", b"\0"])
)
requests = st.builds(
    lambda kind, number, transaction, payload: Message(kind, number, transaction, payload).encode(),
    st.sampled_from([*MessageType, 20, 99, 65535]),
    st.integers(0, 0xFFFFFFFF),
    st.sampled_from([0, 0, 0, 1, 2, 7]),
    payloads,
)
headers_that_lie = st.builds(
    lambda kind, length, payload: kind.to_bytes(4, "little") + b"\0" * 8 + length.to_bytes(4, "little") + payload,
    st.integers(0, 30),
    st.sampled_from([0, 1, 4095, 4096, 4097, 0xFFFFFFFF]),
    st.binary(max_size=40),
)
streams = st.lists(st.one_of(requests, requests, requests, headers_that_lie, st.binary(max_size=60)), max_size=12)


def pieces(stream: bytes, cuts: Sequence[int]) -> list[bytes]:
    places = sorted({cut % (len(stream) + 1) for cut in cuts} | {0, len(stream)})
    return [stream[start:end] for start, end in pairwise(places)]


def ask(carrier: socket.socket, kind: MessageType, payload: bytes) -> Message:
    """Ask as a client that reads its replies."""
    carrier.sendall(Message(kind, 1, 0, payload).encode())
    decoder = MessageDecoder()
    while (reply := decoder.next_message()) is None or reply.type == MessageType.WATCH_EVENT:
        chunk = carrier.recv(65536)
        assert chunk, "an honest client was thrown out"
        decoder.feed(chunk)
    return reply


@settings(max_examples=60, deadline=None)
@given(st.lists(streams, min_size=len(CALLERS), max_size=len(CALLERS)), st.lists(st.integers(0, 1 << 16), max_size=8))
def test_any_bytes_of_several_clients_leave_a_server_that_serves(sent: list[list[bytes]], cuts: list[int]) -> None:
    pairs = [socket.socketpair() for _ in range(len(CALLERS) + 1)]
    with XenStoreService() as service:
        honest, *hostile = (mine for mine, _ in pairs)
        for (_, their), domid in zip(pairs, (0, *CALLERS), strict=True):
            service.attach(their, DomId(domid))
        honest.settimeout(20)
        waiting = [pieces(b"".join(stream), cuts) for stream in sent]
        while any(waiting):
            for carrier, chunks in zip(hostile, waiting, strict=True):
                if chunks:
                    with suppress(OSError):  # thrown out, or not read from at the moment
                        carrier.send(chunks.pop(0), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        assert ask(honest, MessageType.CONTROL, b"check\0").payload == b"OK\0"
        for carrier in hostile:
            check_output(carrier)
        assert ask(honest, MessageType.GET_DOMAIN_PATH, b"7\0").payload == b"/local/domain/7\0"
    for mine, _ in pairs:
        mine.close()


def check_output(carrier: socket.socket) -> None:
    """All that comes back is messages, whole or cut at the end."""
    decoder = MessageDecoder()
    with suppress(BlockingIOError, ConnectionResetError):
        while chunk := carrier.recv(65536, socket.MSG_DONTWAIT):
            decoder.feed(chunk)
    while (reply := decoder.next_message()) is not None:
        assert len(reply.payload) <= 4096
    assert decoder.pending_bytes < HEADER_SIZE + 4096
