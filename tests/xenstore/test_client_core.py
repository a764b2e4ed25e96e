from __future__ import annotations

import pytest

from xenvirtio.errors import PeerProtocolError
from xenvirtio.xenstore.client_core import ClientCore, ClientState, Reply, WatchEvent
from xenvirtio.xenstore.wire import Message, MessageDecoder, MessageType


def sent(core: ClientCore) -> list[Message]:
    """Take what the core wants to send."""
    decoder = MessageDecoder()
    while core.outgoing:
        decoder.feed(core.outgoing.popleft())
    return list(iter(decoder.next_message, None))


def answer(core: ClientCore, request: Message, payload: bytes = b"OK\0") -> None:
    core.feed(Message(request.type, request.request_id, 0xBAD, payload).encode())


def event(path: bytes, token: bytes) -> bytes:
    return Message(MessageType.WATCH_EVENT, 0xDEAD, 0xBEEF, path + b"\0" + token + b"\0").encode()


def ready_core() -> ClientCore:
    core = ClientCore()
    core.connected()
    (probe,) = sent(core)
    answer(core, probe, b"/local/domain/0\0")
    assert core.state == ClientState.READY
    return core


def test_it_is_ready_when_the_server_has_answered() -> None:
    core = ClientCore()
    states = [core.state]
    core.connected()
    states.append(core.state)
    assert states == [ClientState.ABSENT, ClientState.CONNECTING]
    (probe,) = sent(core)
    core.feed(Message(MessageType.ERROR, probe.request_id, 0, b"ENOSYS\0").encode())
    assert core.state == ClientState.READY


def test_replies_are_matched_by_request_id_alone() -> None:
    core = ready_core()
    first, second = core.request(MessageType.READ, b"/a\0"), core.request(MessageType.READ, b"/b\0")
    one, two = sent(core)
    answer(core, two, b"2")
    answer(core, one, b"1")
    assert (core.take_reply(first), core.take_reply(second)) == (Reply(b"1"), Reply(b"2"))
    assert core.take_reply(first) is None


def test_an_error_without_an_id_belongs_to_the_oldest_request() -> None:
    core = ready_core()
    first, second = core.request(MessageType.DIRECTORY_PART, b""), core.request(MessageType.READ, b"/b\0")
    core.feed(Message(MessageType.ERROR, 0, 0, b"ENOSYS\0").encode())
    reply = core.take_reply(first)
    assert reply is not None
    assert reply.error == "ENOSYS"
    assert core.take_reply(second) is None


def test_an_event_may_come_before_the_reply_and_with_any_ids() -> None:
    core = ready_core()
    core.remember_watch("/a", "t")
    number = core.request(MessageType.WATCH, b"/a\0t\0")
    (request,) = sent(core)
    core.feed(event(b"/a", b"t"))
    answer(core, request)
    assert core.take_event() == WatchEvent("/a", "t")
    assert core.take_reply(number) == Reply(b"OK\0")


def test_equal_events_wait_once_and_unknown_tokens_are_dropped() -> None:
    core = ready_core()
    core.remember_watch("/a", "t")
    for path, token in [(b"/a/x", b"t"), (b"/a/y", b"t"), (b"/a/x", b"t"), (b"/a", b"gone")]:
        core.feed(event(path, token))
    assert list(iter(core.take_event, None)) == [WatchEvent("/a/x", "t"), WatchEvent("/a/y", "t")]


def test_forgetting_a_watch_drops_its_events_unless_another_has_the_token() -> None:
    core = ready_core()
    for path in ("/a", "/b"):
        core.remember_watch(path, "t")
    core.feed(event(b"/a", b"t"))
    core.forget_watch("/a", "t")
    assert core.has_events
    core.forget_watch("/b", "t")
    assert not core.has_events


def test_a_reply_nobody_waits_for_is_ignored() -> None:
    core = ready_core()
    number = core.request(MessageType.READ, b"/a\0")
    (request,) = sent(core)
    core.forget(number)
    answer(core, request)
    assert core.take_reply(number) is None


def test_a_new_connection_registers_every_watch_before_it_is_ready() -> None:
    core = ready_core()
    core.remember_watch("/a", "1")
    core.remember_watch("/b", "2")
    lost = core.request(MessageType.READ, b"/a\0")
    core.disconnected()
    core.connected()
    payloads = []
    while core.state != ClientState.READY:
        (request,) = sent(core)
        payloads.append((request.type, request.payload))
        answer(core, request)
    assert payloads == [
        (MessageType.GET_DOMAIN_PATH, b"0\0"),
        (MessageType.WATCH, b"/a\x001\0"),
        (MessageType.WATCH, b"/b\x002\0"),
    ]
    assert core.take_reply(lost) is None
    assert core.epoch == 2


@pytest.mark.parametrize(
    "nonsense", [b"\xff" * 16, Message(15, 0, 0, b"/a\0").encode(), Message(15, 0, 0, b"x").encode()]
)
def test_what_is_not_xenstore_is_an_error_of_the_peer(nonsense: bytes) -> None:
    with pytest.raises(PeerProtocolError):
        ready_core().feed(nonsense)
