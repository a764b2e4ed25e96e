from __future__ import annotations

import socket
import time
from pathlib import Path

import pytest

from xenvirtio.errors import UsageError
from xenvirtio.ids import DomId
from xenvirtio.xenstore.client import XenStoreClient
from xenvirtio.xenstore.serve import MESSAGES_PER_GUEST_TURN, XenStoreService
from xenvirtio.xenstore.server import XenStoreServer
from xenvirtio.xenstore.wire import Message, MessageDecoder, MessageType


def receive(carrier: socket.socket, count: int) -> list[Message]:
    carrier.settimeout(5)
    decoder = MessageDecoder()
    messages: list[Message] = []
    while len(messages) < count:
        decoder.feed(carrier.recv(65536))
        messages += list(iter(decoder.next_message, None))
    return messages


def connected(path: Path) -> socket.socket:
    carrier = socket.socket(socket.AF_UNIX)
    carrier.connect(str(path))
    return carrier


def test_the_path_is_private_replaced_when_stale_and_removed(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    with XenStoreService() as service:
        service.listen(path)
        assert path.stat().st_mode & 0o777 == 0o600
        with pytest.raises(UsageError):
            service.start()
        with pytest.raises(OSError, match="in use"):
            XenStoreService().listen(path)
    assert not path.exists()
    service.stop()


def test_pipelined_requests_are_answered_in_order(tmp_path: Path) -> None:
    with XenStoreService() as service:
        service.listen(tmp_path / "socket")
        with connected(tmp_path / "socket") as carrier:
            requests = [Message(MessageType.READ, number, 0, b"/tool\0").encode() for number in range(500)]
            carrier.sendall(b"".join(requests))
            assert [reply.request_id for reply in receive(carrier, 500)] == list(range(500))


def test_an_over_long_message_ends_only_its_own_connection(tmp_path: Path) -> None:
    with XenStoreService() as service:
        service.listen(tmp_path / "socket")
        with connected(tmp_path / "socket") as bad, XenStoreClient.at(tmp_path / "socket") as good:
            bad.sendall(b"\xff" * 16)
            bad.settimeout(5)
            assert bad.recv(100) == b""
            assert good.read("/tool") == ""


def test_a_client_that_never_reads_does_not_stop_the_others(tmp_path: Path) -> None:
    with XenStoreService() as service:
        service.listen(tmp_path / "socket")
        ours, theirs = socket.socketpair()
        service.attach(theirs, DomId(5))
        with ours, XenStoreClient.at(tmp_path / "socket") as good:
            ours.setblocking(False)
            flood = Message(MessageType.READ, 1, 0, b"/tool\0").encode() * 100
            for _ in range(500):
                try:
                    ours.send(flood)
                except BlockingIOError:
                    time.sleep(0.001)
            started = time.monotonic()
            for _ in range(50):
                good.read("/tool")
            assert time.monotonic() - started < 5
            queued = service.call(lambda server: [len(c.outgoing) for c in server.connections_of(5)])
            assert queued[0] <= 20


def test_a_path_can_speak_for_a_domain(tmp_path: Path) -> None:
    with XenStoreService() as service:
        service.listen(tmp_path / "five", DomId(5))
        with connected(tmp_path / "five") as carrier:
            carrier.sendall(Message(MessageType.READ, 1, 0, b"/tool\0").encode())
            assert receive(carrier, 1)[0].payload == b"EACCES\0"


def test_a_call_may_call_again(tmp_path: Path) -> None:
    with XenStoreService() as service:
        assert service.call(lambda server: service.call(lambda inner: inner is server))


def test_what_a_call_raises_comes_back(tmp_path: Path) -> None:
    with XenStoreService() as service, pytest.raises(ZeroDivisionError):
        service.call(lambda server: 1 // 0)


def replies_waiting(carrier: socket.socket) -> int:
    decoder = MessageDecoder()
    try:
        decoder.feed(carrier.recv(65536, socket.MSG_DONTWAIT))
    except BlockingIOError:
        return 0
    return len(list(iter(decoder.next_message, None)))


def test_a_domain_with_much_to_ask_delays_another_by_its_short_turn_only() -> None:
    service = XenStoreService()  # not started: rounds are run by hand
    flooder, theirs = socket.socketpair()
    victim, victims = socket.socketpair()
    request = Message(MessageType.GET_DOMAIN_PATH, 1, 0, b"3\0").encode()
    with flooder, victim:
        service.attach(theirs, DomId(3))
        service.attach(victims, DomId(4))
        flooder.sendall(request * 200)
        for _ in range(5):
            run_round(service)
        answered = replies_waiting(flooder)
        assert 0 < answered <= 5 * MESSAGES_PER_GUEST_TURN
        for _ in range(10):
            victim.sendall(request)
            run_round(service)
            assert replies_waiting(victim) == 1
        assert 0 < replies_waiting(flooder) <= 10 * MESSAGES_PER_GUEST_TURN
    service.start()
    service.stop()


def run_round(service: XenStoreService) -> None:
    service._poller.wait(0.0)
    service.take_turns()


def test_a_domain_in_debt_waits_until_it_is_paid_and_others_do_not() -> None:
    def ruin(server: XenStoreServer) -> None:
        for _ in range(1010 + 40):  # burst and reserve, and a fifth of a second's credit
            server._rate.charge(DomId(3), time.monotonic())

    request = Message(MessageType.GET_DOMAIN_PATH, 1, 0, b"3\0").encode()
    debtor, theirs = socket.socketpair()
    other, others = socket.socketpair()
    with debtor, other, XenStoreService() as service:
        service.attach(theirs, DomId(3))
        service.attach(others, DomId(4))
        service.call(ruin)
        started = time.monotonic()
        debtor.sendall(request)
        for _ in range(5):
            other.sendall(request)
            receive(other, 1)
        assert replies_waiting(debtor) == 0 or time.monotonic() - started > 0.15
        receive(debtor, 1)
        assert time.monotonic() - started > 0.1


def test_many_events_go_out_bit_by_bit_and_all_of_them() -> None:
    hoarder, theirs = socket.socketpair()
    control, controls = socket.socketpair()
    with hoarder, control, XenStoreService() as service:
        service.attach(theirs, DomId(3))
        service.attach(controls, DomId(0))
        for number in range(100):
            hoarder.sendall(Message(MessageType.WATCH, 1, 0, b"/tool\0token-%d\0" % number).encode())
            receive(hoarder, 2)  # the reply and the first event
        control.sendall(Message(MessageType.SET_PERMS, 1, 0, b"/tool\0r0\0").encode())
        receive(control, 1)
        events = receive(hoarder, 100)
        assert len({event.payload for event in events}) == 100
        assert {event.type for event in events} == {MessageType.WATCH_EVENT}


def test_who_reads_late_gets_all_its_events() -> None:
    """A guest's events come bit by bit; the rest was forgotten once the socket, full before, had taken the first."""
    ours, theirs = socket.socketpair()

    def write(server: XenStoreServer) -> None:
        dom0 = server.connect(DomId(0))
        server.handle(dom0, Message(MessageType.SET_PERMS, 1, 0, b"/tool\0n0\0r5\0"))
        for number in range(900):
            server.handle(dom0, Message(MessageType.WRITE, 1, 0, b"/tool/%d%s\0" % (number, b"x" * 1900)))
        server.disconnect(dom0)

    with XenStoreService() as service, ours:
        service.attach(theirs, DomId(5), privileged=False)
        ours.sendall(Message(MessageType.WATCH, 1, 0, b"/tool\0t\0").encode())
        receive(ours, 2)  # it watches
        service.call(write)
        time.sleep(0.2)  # until the socket is full
        assert len(receive(ours, 900)) >= 900
