"""Whatever a server answers: a value or a documented error, in time, and a client that can be closed."""

from __future__ import annotations

import socket
import struct
import tempfile
import threading
import time
from collections.abc import Callable
from itertools import cycle
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xenvirtio.channels.unix_socket import UnixSocketChannel
from xenvirtio.errors import PeerProtocolError, XenStoreError
from xenvirtio.xenstore.client import Operations, XenStoreClient
from xenvirtio.xenstore.client_core import EVENTS_MAX, ClientCore, ClientState
from xenvirtio.xenstore.connect import connect_path
from xenvirtio.xenstore.wire import Message, MessageDecoder, MessageType, join_strings

TIMEOUT_S = 0.15

replies = st.builds(
    lambda kind, number, transaction, payload: Message(kind, number, transaction, payload).encode(),
    st.sampled_from([*MessageType, 20, 99]),
    st.one_of(st.integers(0, 6), st.integers(0, 0xFFFFFFFF)),
    st.integers(0, 3),
    st.one_of(
        st.binary(max_size=60),
        st.sampled_from([b"ENOENT\0", b"EWHAT\0", b"\xff\0", b"/a\0t\0", b"/a\0", b"/a\0t\0more\0", b"OK\0", b""]),
    ),
)


@given(st.lists(st.one_of(replies, replies, st.binary(max_size=40)), max_size=30), st.integers(1, 50))
def test_any_server_bytes_leave_the_core_usable(stream: list[bytes], step: int) -> None:
    core = ClientCore()
    core.remember_watch("/a", "t")
    core.connected()
    numbers = [core.request(MessageType.READ, b"/a\0") for _ in range(3)]
    sent = b"".join(stream)
    try:
        for start in range(0, len(sent), step):
            core.feed(sent[start : start + step])
    except PeerProtocolError:
        core.disconnected()
        assert core.state is ClientState.ABSENT
    for number in numbers:
        reply = core.take_reply(number)
        assert reply is None or reply.error is None or reply.error.startswith("E")
    while (event := core.take_event()) is not None:
        assert event.token == "t"
    assert not core.has_events


def test_a_server_that_never_stops_telling_is_given_up() -> None:
    core = ClientCore()
    core.remember_watch("/", "t")
    core.connected()
    paths = (b"/%d" % number for number in range(EVENTS_MAX + 1))
    events = b"".join(Message(MessageType.WATCH_EVENT, 0, 0, join_strings((path, b"t"))).encode() for path in paths)
    with pytest.raises(PeerProtocolError):
        core.feed(events)


Lie = Callable[[Message], bytes | None]
"""What a server answers to a request; None: it hangs up."""


def _reply(request: Message, payload: bytes, *, kind: int | None = None, number: int | None = None) -> bytes:
    return Message(
        request.type if kind is None else kind, request.request_id if number is None else number, 0, payload
    ).encode()


LIES: dict[str, Lie] = {
    "the truth": lambda r: _reply(r, b"1\0" if r.type == MessageType.TRANSACTION_START else b"OK\0"),
    "a wrong id": lambda r: _reply(r, b"OK\0", number=r.request_id ^ 1),
    "an id of 0": lambda r: _reply(r, b"ENOENT\0", kind=MessageType.ERROR, number=0),
    "a wrong type": lambda r: _reply(r, b"OK\0", kind=MessageType.SET_TARGET),
    "an unknown error": lambda r: _reply(r, b"EWHATEVER\0", kind=MessageType.ERROR),
    "an empty error": lambda r: _reply(r, b"", kind=MessageType.ERROR),
    "a conflict": lambda r: _reply(r, b"EAGAIN\0", kind=MessageType.ERROR),
    "a list too long": lambda r: (
        _reply(r, b"E2BIG\0", kind=MessageType.ERROR) if r.type == MessageType.DIRECTORY else _reply(r, b"7\0child\0")
    ),
    "a list that changes for ever": lambda r: (
        _reply(r, b"E2BIG\0", kind=MessageType.ERROR)
        if r.type == MessageType.DIRECTORY
        else _reply(r, b"%d\0child\0" % time.monotonic_ns())
    ),
    "no text": lambda r: _reply(r, b"\xff\xfe"),
    "nothing": lambda r: _reply(r, b""),
    "a number too large": lambda r: _reply(r, b"9" * 4096),
    "transaction 0": lambda r: _reply(r, b"0\0"),
    "silence": lambda r: b"",
    "a length that lies": lambda r: struct.pack("<IIII", r.type, r.request_id, 0, 0xFFFFFFFF),
    "half a message": lambda r: _reply(r, b"abc")[:-1],
    "an event without a token": lambda r: _reply(r, b"/a\0", kind=MessageType.WATCH_EVENT),
    "events without end": lambda r: _reply(r, b"/a\0t\0", kind=MessageType.WATCH_EVENT, number=0) * 50,
    "noise": lambda r: b"\x5a" * 37,
    "hanging up": lambda r: None,
}


class Liar:
    """Answers each request with the next lie, on any number of connections; the first answer of each is true unless
    `from_the_start`, or no client would ever get beyond it."""

    def __init__(self, lies: list[str], *, from_the_start: bool) -> None:
        self._lies = cycle([LIES[name] for name in lies])
        self._from_the_start = from_the_start
        self._threads: list[threading.Thread] = []

    def connect(self) -> UnixSocketChannel:
        mine, their = socket.socketpair()
        thread = threading.Thread(target=self._serve, args=(their,), daemon=True)
        self._threads.append(thread)
        thread.start()
        return UnixSocketChannel(mine)

    def _serve(self, carrier: socket.socket) -> None:
        decoder, is_first = MessageDecoder(), not self._from_the_start
        with carrier:
            try:
                while chunk := carrier.recv(65536):
                    decoder.feed(chunk)
                    while (request := decoder.next_message()) is not None:
                        answer = (LIES["the truth"] if is_first else next(self._lies))(request)
                        is_first = False
                        if answer is None:
                            return
                        carrier.sendall(answer)
            except OSError:
                return  # the client has had enough

    def join(self) -> None:
        for thread in self._threads:
            thread.join(10)
            assert not thread.is_alive()


def _write_and_read(operations: Operations) -> str:
    operations.write("/a", "1")
    return operations.read("/a")


USES: tuple[Callable[[XenStoreClient], object], ...] = (
    lambda client: client.read("/a"),
    lambda client: client.read_optional("/a"),
    lambda client: client.write("/a", "x"),
    lambda client: client.directory("/a"),
    lambda client: client.get_permissions("/a"),
    lambda client: client.set_permissions("/a", ["n0"]),
    lambda client: client.watch("/a", "t"),
    lambda client: client.next_event(0.01),
    lambda client: client.pump(),
    lambda client: client.unwatch("/a", "t"),
    lambda client: client.transact(_write_and_read, attempts=3),
    lambda client: client.get_domain_path(3),
    lambda client: client.is_domain_introduced(3),
    lambda client: client.control("help"),
)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from(sorted(LIES)), min_size=1, max_size=6), st.booleans(), st.data())
def test_a_server_that_lies_costs_time_outs_and_errors_only(
    lies: list[str], from_the_start: bool, data: st.DataObject
) -> None:
    liar = Liar(lies, from_the_start=from_the_start)
    client = XenStoreClient(liar.connect, timeout_s=TIMEOUT_S)
    try:
        for use in data.draw(st.lists(st.sampled_from(USES), min_size=1, max_size=4)):
            started = time.monotonic()
            try:
                use(client)
            except (XenStoreError, PeerProtocolError):
                pass
            assert time.monotonic() - started < 30
    finally:
        started = time.monotonic()
        client.close()
        assert time.monotonic() - started < 10
    liar.join()


@pytest.mark.parametrize("name", sorted(LIES))
def test_each_lie_alone(name: str) -> None:
    liar = Liar([name], from_the_start=False)
    with XenStoreClient(liar.connect, timeout_s=TIMEOUT_S) as client:
        for use in USES:
            try:
                use(client)
            except (XenStoreError, PeerProtocolError):
                pass
    liar.join()


@given(st.sampled_from(["absent", "file", "directory", "dead socket", "datagram", "full queue", "\0", "x" * 200]))
def test_any_path_is_a_channel_or_none(kind: str) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "place"
        held: list[socket.socket] = []
        if kind == "file":
            path.write_bytes(b"x")
        elif kind == "directory":
            path.mkdir()
        elif kind in ("dead socket", "datagram", "full queue"):
            server = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM if kind == "datagram" else socket.SOCK_STREAM)
            server.bind(str(path))
            held.append(server)
            if kind == "full queue":
                server.listen(0)
                for _ in range(3):
                    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                    client.setblocking(False)
                    client.connect_ex(str(path))
                    held.append(client)
        else:
            path = Path(directory) / kind
        try:
            assert connect_path(path) is None
        finally:
            for one in held:
                one.close()
