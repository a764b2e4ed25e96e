"""The client without I/O: requests go out, replies and events come in.

Replies are matched by request id alone: a reduced server leaves the transaction id to chance, and an ERROR with id 0
(Zephyr) belongs to the oldest request. Events are known by their type alone: in those that the kernel passes on the
ids are garbage; an event may come before the reply to the request that caused it, a WATCH included.
After each connect the core asks one harmless question, registers all watches again (each fires, so that users list
anew), and only then is READY.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from dataclasses import dataclass
from enum import Enum

from xenvirtio.errors import PeerProtocolError
from xenvirtio.xenstore.wire import Message, MessageDecoder, MessageType, join_strings, parse_error, split_strings

EVENTS_MAX = 100_000
"""Different ones that nobody has taken. Beyond it the connection is given up, as for any nonsense: memory is bounded,
and the next connection fires every watch, so that nothing is missed."""


class ClientState(Enum):
    ABSENT = "no server"
    CONNECTING = "a channel, the server has not answered yet"
    READY = "in service"


@dataclass(frozen=True, slots=True)
class WatchEvent:
    """Something changed at `path`, which has the form (relative or not) that was watched."""

    path: str
    token: str


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer to a request: `error` is the name in an ERROR reply, None after success."""

    payload: bytes
    error: str | None = None


class ClientCore:
    """All that a client remembers. `epoch` counts connections: a transaction of an earlier one is lost."""

    def __init__(self) -> None:
        self.state = ClientState.ABSENT
        self.epoch = 0
        self.outgoing: deque[bytes] = deque()
        self._decoder = MessageDecoder()
        self._last_id = 0
        self._waiting: dict[int, Reply | None] = {}
        self._handshake: deque[tuple[MessageType, bytes]] = deque()
        self._handshake_id = 0
        self._watches: dict[tuple[str, str], None] = {}
        self._tokens: Counter[str] = Counter()
        self._events: OrderedDict[WatchEvent, None] = OrderedDict()  # taken from the front, where a dict gets slow

    def connected(self) -> None:
        """There is a new channel."""
        self.epoch += 1
        self.state = ClientState.CONNECTING
        self._handshake.append((MessageType.GET_DOMAIN_PATH, b"0\0"))
        self._handshake.extend((MessageType.WATCH, watch_payload(*watch)) for watch in self._watches)
        self._next_handshake()

    def disconnected(self) -> None:
        """The channel is gone, and with it every reply that was still to come."""
        self.state = ClientState.ABSENT
        self.outgoing.clear()
        self._decoder = MessageDecoder()
        self._waiting.clear()
        self._handshake.clear()

    def request(self, kind: MessageType, payload: bytes, transaction_id: int = 0) -> int:
        """Put a request into `outgoing` and return its id."""
        self._last_id = self._last_id % 0xFFFFFFFF + 1
        self.outgoing.append(Message(kind, self._last_id, transaction_id, payload).encode())
        self._waiting[self._last_id] = None
        return self._last_id

    def take_reply(self, request_id: int) -> Reply | None:
        """Return the reply to a request once it is there."""
        reply = self._waiting.get(request_id)
        if reply is not None:
            del self._waiting[request_id]
        return reply

    def forget(self, request_id: int) -> None:
        """Nobody waits for this reply any more."""
        self._waiting.pop(request_id, None)

    def remember_watch(self, path: str, token: str) -> None:
        """Register this watch on every connection to come."""
        if (path, token) not in self._watches:
            self._watches[path, token] = None
            self._tokens[token] += 1

    def forget_watch(self, path: str, token: str) -> None:
        """Do not register it again, and drop its events."""
        if (path, token) not in self._watches:
            return
        del self._watches[path, token]
        self._tokens[token] -= 1
        if not self._tokens[token]:
            del self._tokens[token]
            self._events = OrderedDict((event, None) for event in self._events if event.token != token)

    def has_watch(self, path: str, token: str) -> bool:
        return (path, token) in self._watches

    @property
    def has_events(self) -> bool:
        return bool(self._events)

    def take_event(self) -> WatchEvent | None:
        """Return the oldest event. Equal ones that wait are one."""
        return self._events.popitem(last=False)[0] if self._events else None

    def feed(self, chunk: bytes) -> None:
        """Take bytes of the server in.

        Raises:
            PeerProtocolError: this is not XenStore.
        """
        self._decoder.feed(chunk)
        while (message := self._decoder.next_message()) is not None:
            if message.type == MessageType.WATCH_EVENT:
                self._take_watch_event(message.payload)
            else:
                self._take_answer(message)

    def _take_watch_event(self, payload: bytes) -> None:
        strings = split_strings(payload)
        if len(strings) < 2:
            raise PeerProtocolError(f"watch event with {len(strings)} strings")
        path, token = (text.decode("utf-8", "surrogateescape") for text in strings[:2])
        if token not in self._tokens:
            return
        self._events[WatchEvent(path, token)] = None
        if len(self._events) > EVENTS_MAX:
            raise PeerProtocolError(f"more than {EVENTS_MAX} watch events wait")

    def _take_answer(self, message: Message) -> None:
        is_error = message.type == MessageType.ERROR
        request_id = message.request_id
        if is_error and request_id == 0:
            request_id = next((number for number, reply in self._waiting.items() if reply is None), 0)
        if request_id not in self._waiting:
            return  # its asker has given up
        self._waiting[request_id] = Reply(message.payload, parse_error(message.payload) if is_error else None)
        if request_id == self._handshake_id:
            del self._waiting[request_id]
            self._next_handshake()

    def _next_handshake(self) -> None:
        if self._handshake:
            self._handshake_id = self.request(*self._handshake.popleft())
        else:
            self._handshake_id = 0
            self.state = ClientState.READY


def watch_payload(path: str, token: str) -> bytes:
    """Encode the arguments of WATCH and UNWATCH."""
    return join_strings((path.encode("utf-8", "surrogateescape"), token.encode("utf-8", "surrogateescape")))
