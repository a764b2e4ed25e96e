"""A guest that writes anything anywhere into its ring page, at any time: the server goes on, and so do the others.

Also across restarts: what a successor reads from the page may be forged.
"""

from __future__ import annotations

import random
import struct
from pathlib import Path

import pytest

from tests.xenstore.rings import Guest, Host, page_of, port_of
from xenvirtio.channels.xenstore_ring import CONNECTION, ERROR
from xenvirtio.errors import PeerProtocolError
from xenvirtio.ids import DomId
from xenvirtio.xenstore.serve_ring import OUTPUT_BYTES
from xenvirtio.xenstore.wire import Message, MessageType

WORDS = range(2048, 2080, 4)


def disturb(chance: random.Random, hostile: Guest) -> None:
    """Do one thing that a guest can do."""
    page = page_of(hostile.domain)
    match chance.randrange(6):
        case 0:
            kind, length = chance.choice([*MessageType, 20, 99]), chance.choice([0, 5, 200, 4000])
            payload = chance.randbytes(length) if chance.random() < 0.5 else b"a/b\0" * (length // 4)
            data = Message(kind, chance.randrange(1 << 32), chance.choice([0, 0, 1]), payload).encode()
            try:
                hostile.end.send(data[: chance.choice([len(data), chance.randrange(len(data) + 1)])])
            except PeerProtocolError:
                pass  # the guest's own end, after what it did to its indices
        case 1:
            struct.pack_into("<I", page, chance.choice(WORDS), chance.choice([0, 1, 1024, chance.randrange(1 << 32)]))
        case 2:
            struct.pack_into("<4I", page, 2048, *([chance.randrange(1 << 32)] * 4))  # consistent, somewhere else
        case 3:
            place = chance.randrange(2048)
            page[place : place + 8] = chance.randbytes(8)
        case 4:
            struct.pack_into("<I", page, ERROR, 0)
            struct.pack_into("<I", page, CONNECTION, 1)
        case 5:
            try:
                hostile.end.receive()
            except PeerProtocolError:
                pass
    hostile.domain.event_channels.notify(port_of(hostile.domain))


@pytest.mark.parametrize("seed", range(12))
def test_a_page_full_of_nonsense_disturbs_nobody(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    host = Host(tmp_path / "state", compact_bytes=chance.choice([1, 1 << 20]))
    victim, hostile = host.create(), host.create()
    for number in range(1, 251):
        for _ in range(chance.randrange(4)):
            disturb(chance, hostile)
        if chance.random() < 0.05:
            host = host.killed()
        victim.send(MessageType.WRITE, f"x|{number}", number)
        host.run(2)
        assert [message.request_id for message in victim.poll()] == [number]
        for connection in host.server.connections_of(hostile.domain.domid):
            assert connection.stream is None or len(connection.stream.unsent) < OUTPUT_BYTES + 3 * 4112
    check = host.server.handle(host.server.connect(DomId(0)), Message(MessageType.CONTROL, 0, 0, b"check\0"))
    assert check.payload == b"OK\0"
    hostile.end.ask_reconnect()
    host.run()
    again = Guest(hostile.domain)
    again.send(MessageType.GET_DOMAIN_PATH, "2|", 9)
    host.run()
    again.poll()
    assert again.texts() == ["9:/local/domain/2"]
    host.host.close()
