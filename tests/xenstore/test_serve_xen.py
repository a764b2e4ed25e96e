"""The XenStore of a host: rings opened, served, reset, given up, as guests and dom0 see it."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.xenstore.rings import Guest, Host, client_of, page_of, port_of
from xenvirtio.channels.xenstore_ring import (
    CONNECTION,
    ERROR,
    REQUEST_PRODUCER,
    RESPONSE_CONSUMER,
    RING_BYTES,
    SERVER_FEATURES,
)
from xenvirtio.errors import HypervisorError, XenStoreError
from xenvirtio.ids import DomId
from xenvirtio.xenstore.wire import Message, RefusedError
from xenvirtio.xenstore.wire import MessageType as M


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    host = Host(tmp_path / "state")
    yield host
    host.host.close()


def word(guest: Guest, offset: int) -> int:
    return int(struct.unpack_from("<I", page_of(guest.domain), offset)[0])


def put(guest: Guest, offset: int, value: int) -> None:
    struct.pack_into("<I", page_of(guest.domain), offset, value)


def kick(guest: Guest) -> None:
    guest.domain.event_channels.notify(port_of(guest.domain))


def exchange(host: Host, guest: Guest, rounds: int = 20) -> list[str]:
    """Let both sides work; return all the guest has received."""
    for _ in range(rounds):
        guest.push()
        host.run(1)
        guest.poll()
    return guest.texts()


def test_a_guest_is_answered_and_told_of_changes(host: Host) -> None:
    guest = host.create()
    guest.send(M.WATCH, "data|t|", 1)
    guest.send(M.WRITE, "data/x|1", 2)
    guest.send(M.READ, "data/x|", 3)
    guest.send(M.READ, "/tool|", 4)
    assert exchange(host, guest) == ["1:OK", "*data|t", "2:OK", "*data/x|t", "3:1", "4:EACCES"]


def test_the_features_are_in_the_page(host: Host) -> None:
    guest = host.create()
    assert word(guest, SERVER_FEATURES) == 15
    guest.send(M.GET_FEATURE, "|", 1)
    assert exchange(host, guest) == ["1:15"]


def test_messages_longer_than_the_ring_pass_both_ways(host: Host) -> None:
    dom0 = Guest(host.host.domain(DomId(0)))  # type: ignore[arg-type]
    value = bytes(range(256)) * 15
    dom0.send(M.WRITE, b"/big\0" + value, 1)
    dom0.send(M.READ, "/big|", 2)
    exchange(host, dom0)
    assert [m.request_id for m in dom0.received] == [1, 2]
    assert dom0.received[1].payload == value


def test_the_kernel_of_dom0_is_privileged_and_hears_of_domains(host: Host) -> None:
    dom0 = Guest(host.host.domain(DomId(0)))  # type: ignore[arg-type]
    dom0.send(M.WATCH, "@introduceDomain|i|", 1)
    dom0.send(M.WATCH, "@releaseDomain|r|1|", 2)
    exchange(host, dom0)
    domain = host.host.create_domain(memory_bytes=1 << 20)
    domain.give_xenstore()
    dom0.send(M.MKDIR, f"/local/domain/{domain.domid}|", 2)
    dom0.send(M.SET_PERMS, f"/local/domain/{domain.domid}|n{domain.domid}|", 3)
    dom0.send(M.WRITE, f"/local/domain/{domain.domid}/name|guest", 4)
    dom0.send(M.INTRODUCE, f"{domain.domid}|1|{port_of(domain)}|", 5)
    exchange(host, dom0)
    guest = Guest(domain)
    guest.send(M.READ, "name|", 1)
    assert exchange(host, guest) == ["1:guest"]
    host.host.destroy_domain(domain.domid)
    texts = exchange(host, dom0)[4:]
    assert texts == ["2:OK", "3:OK", "4:OK", "*@introduceDomain|i", "5:OK", f"*@releaseDomain/{domain.domid}|r"]
    dom0.send(M.READ, f"/local/domain/{domain.domid}/name|", 6)
    assert exchange(host, dom0)[-1] == "6:ENOENT"
    assert host.host.domain(domain.domid) is None, "the page is let go of, or the domain stays a zombie"


def test_a_shutdown_is_told_once_and_the_ring_goes_on(host: Host) -> None:
    dom0 = Guest(host.host.domain(DomId(0)))  # type: ignore[arg-type]
    dom0.send(M.WATCH, "@releaseDomain|r|", 1)
    guest, other = host.create(), host.create()
    exchange(host, dom0)
    guest.domain.crash("by itself")
    other.domain.crash("by itself")
    assert exchange(host, dom0).count("*@releaseDomain|r") == 3
    assert set(host.rings.links) == {0, guest.domain.domid, other.domain.domid}


def test_a_domain_that_was_told_to_wait_sees_a_clean_ring(host: Host) -> None:
    domain = host.host.create_domain(memory_bytes=1 << 20)
    domain.offer_xenstore(with_page=True)
    guest = Guest(domain)
    assert not guest.end.is_connected
    for offset in (REQUEST_PRODUCER, RESPONSE_CONSUMER, ERROR):
        put(guest, offset, 77)
    host.introduce(domain)
    assert guest.end.is_connected
    guest.send(M.GET_DOMAIN_PATH, "1|", 1)
    assert exchange(host, guest) == ["1:/local/domain/1"]


def test_a_ring_that_cannot_be_served_is_refused_in_the_reply(host: Host) -> None:
    domain = host.host.create_domain(memory_bytes=1 << 20)
    with pytest.raises(RefusedError, match="map_grants"):
        host.service.call(lambda server: server.introduce(domain.domid, 1, 1))
    domain.give_xenstore()
    with pytest.raises(RefusedError, match="bind_interdomain"):
        host.service.call(lambda server: server.introduce(domain.domid, 1, 99))
    assert not domain.mappings
    host.introduce(domain)
    assert host.server.domains.is_introduced(domain.domid)


def test_an_introduction_again_makes_a_new_connection(host: Host) -> None:
    guest = host.create()
    guest.send(M.WATCH, "data|t|", 1)
    guest.send(M.TRANSACTION_START, "|", 2)
    exchange(host, guest)
    guest.end.words[REQUEST_PRODUCER] += 7  # half a message, never finished
    host.introduce(guest.domain)
    again = Guest(guest.domain)
    again.send(M.TRANSACTION_END, "T|", 1, transaction=1)
    again.send(M.WRITE, "data|1", 2)
    assert exchange(host, again) == ["1:ENOENT", "2:OK"]


def test_a_guest_can_ask_for_a_new_connection(host: Host) -> None:
    guest = host.create()
    guest.send(M.WATCH, "data|t|", 1)
    exchange(host, guest)
    guest.send(M.WRITE, "data|lost", 2)
    guest.end.ask_reconnect()
    host.run()
    assert guest.end.is_connected
    again = Guest(guest.domain)
    again.send(M.UNWATCH, "data|t|", 1)
    again.send(M.READ, "data|", 2)
    assert exchange(host, again) == ["1:ENOENT", "2:ENOENT"]


@pytest.mark.parametrize(
    ("offset", "value"),
    [
        (REQUEST_PRODUCER, RING_BYTES + 1),
        (REQUEST_PRODUCER, 0xFFFFFFFF),
        (RESPONSE_CONSUMER, 1),
        (RESPONSE_CONSUMER, 0x80000000),
    ],
)
def test_a_wrong_index_ends_the_connection_until_it_is_asked_for_anew(host: Host, offset: int, value: int) -> None:
    guest = host.create()
    guest.send(M.WATCH, "data|t|", 1)
    put(guest, offset, value)
    kick(guest)
    host.run()
    assert word(guest, ERROR) == 2
    assert host.server.connections_of(guest.domain.domid)[0].watches == {}
    put(guest, offset, 0)
    kick(guest)
    host.run()
    assert host.rings.links[guest.domain.domid].is_refused
    guest.end.ask_reconnect()
    host.run()
    assert word(guest, ERROR) == 0
    again = Guest(guest.domain)
    again.send(M.WRITE, "data|1", 9)
    assert exchange(host, again) == ["9:OK"]


def test_a_guest_that_tells_nothing_while_something_is_unread_is_heard(host: Host) -> None:
    """As Linux: it writes head and body apart, and the second makes no event before the first was taken."""
    guest = host.create()
    request = Message(M.WRITE, 5, 0, b"x\0value").encode()
    for part in (request[:7], request[7:16], request[16:17], request[17:]):
        guest.end.send(part)
        host.run(3)
    assert exchange(host, guest) == ["5:OK"]


def test_a_message_too_long_is_a_protocol_error(host: Host) -> None:
    guest = host.create()
    guest.end.send(struct.pack("<IIII", M.WRITE, 1, 0, 4097))
    host.run()
    assert word(guest, ERROR) == 3
    assert word(guest, CONNECTION) == 0
    other = host.create()
    other.send(M.WRITE, "x|1", 1)
    assert exchange(host, other) == ["1:OK"]


def test_a_released_domain_is_not_looked_at_any_more_even_in_the_same_round(host: Host) -> None:
    dom0 = Guest(host.host.domain(DomId(0)))  # type: ignore[arg-type]
    guest = host.create()
    for number in range(5):
        guest.send(M.WRITE, "x|1", number)
    dom0.send(M.RELEASE, f"{guest.domain.domid}|", 1)
    host.run()
    dom0.poll()
    assert dom0.texts() == ["1:OK"]
    assert set(host.rings.links) == {0}
    assert not guest.domain.mappings


def test_who_exists_is_asked_of_xen(host: Host) -> None:
    assert not host.rings.exists(DomId(1))
    domain = host.host.create_domain(memory_bytes=1 << 20)
    assert host.rings.exists(domain.domid)
    domain.give_xenstore()
    host.introduce(domain)
    host.host.destroy_domain(domain.domid)
    host.run()
    assert not host.rings.exists(domain.domid)


def test_a_second_server_on_one_host_is_refused(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xenvirtio.xenstore.serve_xen.PREDECESSOR_S", 0.05)
    with pytest.raises(HypervisorError, match="another process"):
        Host(tmp_path / "other", host.host)


def test_clients_in_guests_and_on_sockets_meet(host: Host, tmp_path: Path) -> None:
    guest = host.create()
    host.service.listen(tmp_path / "socket")
    with host.service, client_of(guest.domain) as inside:
        inside.write("data/greeting", "hello")
        assert inside.read("/local/domain/1/data/greeting") == "hello"
        with pytest.raises(XenStoreError, match="EACCES"):
            inside.write("/tool/mine", "x")
        assert inside.transact(lambda transaction: transaction.read("data/greeting")) == "hello"


def test_events_and_replies_beyond_the_ring_come_in_order(host: Host) -> None:
    guest = host.create()
    dom0 = Guest(host.host.domain(DomId(0)))  # type: ignore[arg-type]
    guest.send(M.WATCH, "data|t|", 1)
    exchange(host, guest)
    for number in range(400):
        dom0.send(M.WRITE, f"/local/domain/1/data/{number:04}|x", number)
        host.run(2)
        dom0.poll()
    exchange(host, guest, 100)
    expected = [f"*data/{number:04}|t" for number in range(400)]
    assert guest.texts()[2:] == expected
    assert len(dom0.received) == 400
    assert all(isinstance(message, Message) for message in dom0.received)
