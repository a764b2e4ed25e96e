"""What one domain does to its own ring does not take from others more than a turn; counted in requests, not in time."""

from __future__ import annotations

import random
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.xenstore.rings import Guest, Host, page_of, port_of
from xenvirtio.channels.xenstore_ring import ERROR, REQUEST_PRODUCER, RESPONSE_CONSUMER
from xenvirtio.xenstore.domains import CONTROL_DOMID
from xenvirtio.xenstore.serve import MESSAGES_PER_GUEST_TURN
from xenvirtio.xenstore.serve_ring import OUTPUT_BYTES
from xenvirtio.xenstore.wire import Message, MessageType
from xenvirtio.xenstore.wire import MessageType as M


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    host = Host(tmp_path / "state")
    yield host
    host.host.close()


class Counter:
    """How many requests each domain had handled."""

    def __init__(self, host: Host) -> None:
        self.handled: dict[int, int] = {}
        real = host.server.receive

        def receive(connection: object, message: Message) -> None:
            domid = connection.domid  # type: ignore[attr-defined]
            self.handled[domid] = self.handled.get(domid, 0) + 1
            real(connection, message)  # type: ignore[arg-type]

        host.server.receive = receive  # type: ignore[method-assign]


def kick(guest: Guest) -> None:
    guest.domain.event_channels.notify(port_of(guest.domain))


def put(guest: Guest, offset: int, value: int) -> None:
    struct.pack_into("<I", page_of(guest.domain), offset, value & 0xFFFFFFFF)


def word(guest: Guest, offset: int) -> int:
    return int(struct.unpack_from("<I", page_of(guest.domain), offset)[0])


def flood(guest: Guest) -> None:
    """Keep the ring full of the smallest requests, and read what comes."""
    guest.poll()
    guest.received.clear()
    small = Message(M.GET_FEATURE, 1, 0, b"").encode()
    while guest.end.send(small) == len(small):
        pass


def answered_in(host: Host, guest: Guest, rounds_max: int = 10) -> int:
    """Ask one thing; return how many rounds of the pump it took."""
    guest.received.clear()
    guest.send(M.READ, "name|", 5)
    for number in range(1, rounds_max + 1):
        host.run(1)
        if any(message.request_id == 5 for message in guest.poll()):
            return number
    raise AssertionError(f"no answer in {rounds_max} rounds")


def test_floods_cost_others_one_turn_each(host: Host) -> None:
    victim, hostile = host.create(), [host.create() for _ in range(8)]
    counter = Counter(host)
    for number in range(1, 20):
        for guest in hostile:
            flood(guest)
        before = dict(counter.handled)
        assert answered_in(host, victim) == 1
        for guest in hostile:
            domid = guest.domain.domid
            assert counter.handled[domid] - before.get(domid, 0) <= MESSAGES_PER_GUEST_TURN
        assert counter.handled[victim.domain.domid] == number
    least = 15 * MESSAGES_PER_GUEST_TURN
    assert all(counter.handled[guest.domain.domid] > least for guest in hostile), "floods are served, too"


def test_who_never_reads_is_not_served_beyond_its_bounds(host: Host) -> None:
    victim, hostile = host.create(), host.create()
    hostile.send(M.WRITE, b"big\0" + b"x" * 1900, 1)
    for _ in range(10):
        hostile.push()
        host.run(1)
        hostile.poll()
    counter = Counter(host)
    for _ in range(200):
        hostile.send(M.READ, "big|", 1)
        host.run(1)
    stream = host.server.connections_of(hostile.domain.domid)[0].stream
    assert stream is not None
    assert len(stream.unsent) < OUTPUT_BYTES + 2000
    assert counter.handled[hostile.domain.domid] <= 20 + 1, "the quota of outstanding replies"
    assert answered_in(host, victim) == 1
    hostile.received.clear()
    for _ in range(1000):  # it reads at last: everything goes on
        hostile.push()
        host.run(1)
        hostile.poll()
    assert [len(message.payload) for message in hostile.received] == [1900] * 200


def test_events_for_a_domain_that_never_reads_are_bounded(host: Host) -> None:
    hostile, accomplice = host.create(), host.create()
    for number in range(150):
        hostile.send(M.WATCH, f"/local/domain/2|{number}{'t' * 40}|", number)
        host.run(1)
        hostile.poll()
    connection = host.server.connections_of(hostile.domain.domid)[0]
    assert len(connection.watches) == 128
    for number in range(400):
        accomplice.send(M.WRITE, f"n{number}|x", number)
        accomplice.send(M.SET_PERMS, f"n{number}|n2|r1|", number)
        host.run(2)
        accomplice.poll()
    assert len(connection.outgoing) > 1000
    assert connection.memory_bytes < 2621440 + 128 * 256, "no more than the quota and one change, whatever others write"
    assert host.server.domains.quota.memory == 2621440
    accomplice.received.clear()
    assert answered_in(host, accomplice) == 1


def test_half_a_message_holds_nobody_up_and_little_memory(host: Host) -> None:
    victim, hostile = host.create(), host.create()
    message = Message(M.WRITE, 1, 0, b"x\0" + b"y" * 4094).encode()
    sent = 0
    while sent < len(message) - 1:
        sent += hostile.end.send(message[sent:-1])
        host.run(1)
        assert answered_in(host, victim) == 1
    connection = host.server.connections_of(hostile.domain.domid)[0]
    assert connection.stream is not None
    assert len(connection.stream.partial) == 4111
    for _ in range(50):
        kick(hostile)
        host.run(1)
    assert host.journal is not None
    assert host.state.stat().st_size < 100_000, "a partial message is written down when it grows and not at each event"


@pytest.mark.parametrize("offset", [REQUEST_PRODUCER, RESPONSE_CONSUMER])
def test_indices_that_jump_end_one_connection_and_no_other(host: Host, offset: int) -> None:
    chance = random.Random(offset)
    victim, hostile = host.create(), host.create()
    for _ in range(300):
        put(hostile, offset, chance.choice([0, 1, 512, 1024, 1025, 0xFFFFFFFF, chance.randrange(1 << 32)]))
        hostile.domain.event_channels.notify(port_of(hostile.domain))
        assert answered_in(host, victim) == 1
        if chance.random() < 0.2:
            hostile.end.ask_reconnect()
    assert word(hostile, ERROR) in (0, 2, 3)


def test_reconnecting_for_ever_costs_others_nothing(host: Host) -> None:
    victim, hostile = host.create(), host.create()
    for _ in range(100):
        hostile.end.ask_reconnect()
        assert answered_in(host, victim) == 1


def test_notifying_for_nothing_does_nothing(host: Host) -> None:
    guest = host.create()
    host.run()
    size = host.state.stat().st_size
    for _ in range(500):
        kick(guest)
        host.run(1)
    assert host.state.stat().st_size == size


def test_making_transactions_of_others_fail_is_rationed(host: Host) -> None:
    """Or one guest makes the toolstack's transactions fail for ever."""
    victim, hostile = host.create(), host.create()
    toolstack = host.server.connect(CONTROL_DOMID)
    node = f"/local/domain/{hostile.domain.domid}/x\0".encode()
    host.server.handle(toolstack, Message(M.WRITE, 1, 0, node))
    host.server.handle(toolstack, Message(M.SET_PERMS, 1, 0, node + b"n%d\0" % hostile.domain.domid))
    victim.send(M.TRANSACTION_START, "|", 1)
    host.run()
    counter = Counter(host)
    for number in range(1, 3001):
        host.server.handle(toolstack, Message(M.TRANSACTION_START, 1, 0, b"\0"))
        host.server.handle(toolstack, Message(M.READ, 1, number, node))
        hostile.send(M.WRITE, f"x|{number}", 1)
        host.run(1)
        hostile.poll()
        host.server.handle(toolstack, Message(M.TRANSACTION_END, 1, number, b"F\0"))
    writes = counter.handled[hostile.domain.domid]
    assert 1000 <= writes < 1100, "the reserve, and then the pace of the clock, which stands still here"
    host.now_s += 1
    for _ in range(5000):  # the pump goes by its own clock for how long not to look
        hostile.push()
        host.run(1)
        hostile.poll()
        if counter.handled[hostile.domain.domid] > writes:
            break
        time.sleep(0.001)
    host.run(100)
    assert 1 <= counter.handled[hostile.domain.domid] - writes <= 400
    victim.poll()
    assert victim.received[0].type == MessageType.TRANSACTION_START
