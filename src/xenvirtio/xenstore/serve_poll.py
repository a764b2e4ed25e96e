"""Who is told when a descriptor is ready: epoll, with a callable for each descriptor.

`selectors` does the same in three times the time, which a request that takes some 20 us in all does feel.
"""

from __future__ import annotations

import select
from collections.abc import Callable

READABLE = select.EPOLLIN
WRITABLE = select.EPOLLOUT

Ready = Callable[[int], None]
"""Gets the events there are, READABLE and WRITABLE; one at its end or in error is told what was asked for."""

_BROKEN = select.EPOLLHUP | select.EPOLLERR


class Poller:
    """The descriptors the pump waits for."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._asked: dict[int, tuple[int, Ready]] = {}

    def ask(self, descriptor: int, events: int, ready: Ready) -> None:
        """From now on wait for these events of a descriptor; 0 for none, as before its first time."""
        known = descriptor in self._asked
        if not events:
            if known:
                del self._asked[descriptor]
                self._epoll.unregister(descriptor)
            return
        if known:
            self._epoll.modify(descriptor, events)
        else:
            self._epoll.register(descriptor, events)
        self._asked[descriptor] = events, ready

    def wait(self, timeout_s: float | None) -> None:
        """Wait for what comes first and call who asked for it; None: for ever."""
        for descriptor, events in self._epoll.poll(timeout_s):
            asked = self._asked.get(descriptor)
            if asked is None:
                continue  # given up by one that was called before it
            wanted, ready = asked
            ready(wanted if events & _BROKEN else events)

    def close(self) -> None:
        self._epoll.close()
