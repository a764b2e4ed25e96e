"""One client of the server: who it is, what it has registered, what waits to be sent to it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

from xenvirtio.ids import DomId
from xenvirtio.xenstore.path import domain_path
from xenvirtio.xenstore.stream import RingStream
from xenvirtio.xenstore.transaction import Transaction
from xenvirtio.xenstore.watch import Watch
from xenvirtio.xenstore.wire import PAYLOAD_MAX, Message, MessageType

_WATCH_EVENT = int(MessageType.WATCH_EVENT)

WATCH_BYTES = 64
"""What a watch costs of the memory quota besides its path and token."""


MESSAGE_BYTES = 128
"""What a waiting message costs of it besides its payload: an event may be a few bytes, and there may be many."""


class OutgoingQueue:
    """Replies and events in the order they arose.

    An event that is already waiting is not queued again: the client re-reads after each event anyway, and a client
    that does not drain must not cost memory for every write of somebody else. Special events are the exception, since
    each stands for another domain.
    """

    def __init__(self) -> None:
        self._waiting: OrderedDict[bytes | int, tuple[Message, float]] = OrderedDict()
        """An ordinary dict would search for its first entry past all those already taken."""
        self._serial = 0
        self.replies = 0
        self.queued_bytes = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def push_reply(self, reply: Message, now_s: float) -> None:
        self.replies += 1
        self._push(self._next_serial(), reply, now_s)

    def push_events(self, payloads: Iterable[bytes], now_s: float) -> None:
        """Queue WATCH_EVENTs; one too long for a message is dropped, as C xenstored does."""
        waiting = self._waiting
        for payload in payloads:
            if payload not in waiting and len(payload) <= PAYLOAD_MAX:
                key = self._next_serial() if payload.startswith(b"@") else payload
                self._push(key, Message(_WATCH_EVENT, 0, 0, payload), now_s)

    def pop(self) -> Message | None:
        """Take the oldest message."""
        if not self._waiting:
            return None
        _, (message, _) = self._waiting.popitem(last=False)
        self._account(message)
        return message

    def expire_events(self, before_s: float) -> int:
        """Drop the events queued earlier than this; return how many."""
        late = []
        for key, (message, queued_s) in self._waiting.items():
            if queued_s >= before_s:
                break
            if message.type == MessageType.WATCH_EVENT:
                late.append(key)
        for key in late:
            self._account(self._waiting.pop(key)[0])
        return len(late)

    def _push(self, key: bytes | int, message: Message, now_s: float) -> None:
        self._waiting[key] = message, now_s
        self.queued_bytes += MESSAGE_BYTES + len(message.payload)

    def _account(self, message: Message) -> None:
        self.queued_bytes -= MESSAGE_BYTES + len(message.payload)
        if message.type != _WATCH_EVENT:
            self.replies -= 1

    def _next_serial(self) -> int:
        self._serial += 1
        return self._serial


class Connection:
    """A client as the server knows it. Made by `XenStoreServer.connect`."""

    def __init__(self, domid: DomId, *, privileged: bool, kept: bool) -> None:
        self.domid = domid
        self.privileged = privileged
        self.kept = kept
        """Do its watches and transactions outlive the server? A domain's ring stays; a socket's client comes anew."""
        self.stream: RingStream | None = None
        """Where it stands, when it is served by a ring that is in use."""
        self.home = domain_path(domid)
        self.speaks_for: frozenset[int] = frozenset({domid})
        self.watches: dict[tuple[str, bytes], Watch[Connection]] = {}
        """By absolute path and token."""
        self.watch_bytes = 0
        self.transactions: dict[int, Transaction] = {}
        self.last_transaction_id = 0
        self.outgoing = OutgoingQueue()
        self.is_closed = False

    def __repr__(self) -> str:
        return f"<Connection of domain {self.domid}{' (privileged)' if self.privileged else ''}>"

    @property
    def memory_bytes(self) -> int:
        """What it holds in the server besides the nodes it owns."""
        private = sum(transaction.private_bytes for transaction in self.transactions.values())
        return private + self.watch_bytes + self.outgoing.queued_bytes

    def add_watch(self, watch: Watch[Connection]) -> None:
        self.watches[watch.path, watch.token] = watch
        self.watch_bytes += _watch_bytes(watch)

    def remove_watch(self, watch: Watch[Connection]) -> None:
        del self.watches[watch.path, watch.token]
        self.watch_bytes -= _watch_bytes(watch)


@dataclass(frozen=True, slots=True)
class LeftBehind:
    """What a domain's connection had when the server was stopped; watches as path, token and depth registered."""

    watches: tuple[tuple[bytes, bytes, int | None], ...]
    transactions: tuple[int, ...]
    last_transaction_id: int
    stream: RingStream | None = None

    @property
    def may_lack_events(self) -> bool:
        """Were there events that nobody will send any more? Without a stream there is no telling."""
        return self.stream is None or self.stream.has_waiting


def _watch_bytes(watch: Watch[Connection]) -> int:
    return WATCH_BYTES + len(watch.path) + len(watch.token)
