"""Domains as a server sees them: each with a home, a connection that is open and watches on what is its own.

The place under measurement is the first of them. Everything is put there by protocol alone, so that any server can be
measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from xenvirtio.bench.store_client import BenchClient, chunks_of, request
from xenvirtio.xenstore.wire import MessageType, join_strings

WATCHES_PER_DOMAIN = 10
"""A guest with a few frontends has about as many; 1,000 domains make 10,000 watches."""

AT_ONCE = 16
"""Requests sent without waiting while a population is built."""


@dataclass(slots=True)
class Population:
    """`base(number)` is the home of domain `number` (from 1); `open(number)` its connection."""

    control: BenchClient
    base: Callable[[int], bytes]
    open: Callable[[int], BenchClient]
    own_nodes: bool
    """Give each home to its domain: needed where the connections are unprivileged."""
    clients: list[BenchClient] = field(default_factory=list)

    def grow(self, count: int) -> None:
        """Make it `count` domains."""
        numbers = range(len(self.clients) + 1, count + 1)
        for encoded, length in chunks_of(self._nodes(numbers), AT_ONCE):
            self.control.ask_all(encoded, length)
        for number in numbers:
            client = self.open(number)
            self.clients.append(client)
            for encoded, length in chunks_of(self._watches(number), AT_ONCE):
                client.ask_all(encoded, length)
            client.drain_events(0.0005)

    def close(self) -> None:
        """Let go of all connections; the nodes are the caller's business."""
        for client in self.clients:
            client.close()

    def _nodes(self, numbers: range) -> Iterator[bytes]:
        for number in numbers:
            home = self.base(number)
            yield request(MessageType.WRITE, home + b"/name\0domain-%d" % number)
            if self.own_nodes:
                yield request(MessageType.SET_PERMS, join_strings((home, b"n%d" % number)))
            for device in range(3):
                place = home + b"/device/%d" % device
                for key, value in ((b"state", b"4"), (b"backend-id", b"0"), (b"event-channel", b"12")):
                    yield request(MessageType.WRITE, place + b"/" + key + b"\0" + value)  # inherits the home's owner

    def _watches(self, number: int) -> Iterator[bytes]:
        for watch in range(WATCHES_PER_DOMAIN):
            path = self.base(number) + b"/device/%d/watched-%d" % (watch % 3, watch)
            yield request(MessageType.WATCH, join_strings((path, b"token-%d" % watch)))
