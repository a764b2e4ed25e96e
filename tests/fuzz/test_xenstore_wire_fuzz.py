"""Any bytes end in a value or the documented error; the server answers every message."""

from __future__ import annotations

import random

import pytest

from xenvirtio.errors import PeerProtocolError
from xenvirtio.ids import DomId
from xenvirtio.xenstore.server import XenStoreServer
from xenvirtio.xenstore.wire import ERROR_NAMES, Message, MessageDecoder, MessageType, parse_error

WORDS = [b"/", b"/a", b"a/b", b"/local/domain/3", b"@releaseDomain", b"n0", b"r3", b"b32757", b"3", b"0", b"-1",
         b"65536", b"99999999999999999999999", b"T", b"F", b"nodes", b"", b"//", b"\xff", b"x" * 2100, b"y" * 4000,
         b"check", b"quota", b"set", b"help", b"log", b"on"]  # fmt: skip


@pytest.mark.parametrize("seed", range(20))
def test_any_stream_is_cut_or_refused(seed: int) -> None:
    chance = random.Random(seed)
    decoder = MessageDecoder()
    try:
        for _ in range(200):
            chunk = chance.randbytes(chance.randrange(40))
            if chance.random() < 0.5:
                chunk = Message(chance.randrange(30), 1, 0, chunk).encode()
            decoder.feed(chunk)
            while decoder.next_message() is not None:
                pass
    except PeerProtocolError:
        pass


@pytest.mark.parametrize("seed", range(30))
def test_every_message_is_answered_with_a_reply_or_a_known_error(seed: int) -> None:
    chance = random.Random(seed)
    server = XenStoreServer(lambda: 0.0)
    callers = [server.connect(DomId(domid)) for domid in (0, 3, 3, 4)]
    server.introduce(DomId(3), 1, 1)
    for _ in range(300):
        separator = chance.choice([b"\0", b"\0", b"\0", b""])
        payload = b"".join(chance.choice(WORDS) + separator for _ in range(chance.randrange(5)))[:4096]
        kind = chance.choice([*MessageType, 20, 99])
        request = Message(kind, chance.randrange(1 << 32), chance.choice([0, 0, 0, 1, 2]), payload)
        caller = chance.choice(callers)
        if caller.is_closed:  # its domain was released
            callers[callers.index(caller)] = caller = server.connect(caller.domid)
        reply = server.handle(caller, request)
        assert reply.request_id == request.request_id
        assert len(reply.encode()) <= 16 + 4096
        if reply.type == MessageType.ERROR:
            assert reply.payload.rstrip(b"\0").decode() in ERROR_NAMES
            assert parse_error(reply.payload) in ERROR_NAMES
        for connection in server.take_ready():
            assert all(message.encode() for message in iter(connection.outgoing.pop, None))
    check = server.handle(callers[0], Message(MessageType.CONTROL, 0, 0, b"check\0"))
    assert check.payload == b"OK\0"
