"""The guest's end of a XenStore ring as a channel: for programs that have the page and the event channel themselves."""

from __future__ import annotations

import os
import select
from collections.abc import Callable
from contextlib import suppress

from xenvirtio.channels.xenstore_ring import GuestEnd

_MESSAGE_MAX_BYTES = 16 + 4096


class GuestRingChannel:
    """A `Channel` over a ring page. The page has to stay mapped until `close`."""

    message_max_bytes = _MESSAGE_MAX_BYTES

    def __init__(
        self,
        page: memoryview,
        events: int,
        notify: Callable[[], None],
        fence: Callable[[], None] = lambda: None,
    ) -> None:
        """`events` is an eventfd that counts the server's notifications; it stays the caller's."""
        self.end = GuestEnd(page, notify, fence)
        self._events = events
        self._epoll = select.epoll()  # unlike an eventfd never writable, so that nobody spins on a full ring
        self._epoll.register(events, select.EPOLLIN)

    def fileno(self) -> int:
        return self._epoll.fileno()

    def send(self, message: bytes) -> int:
        return self.end.send(message) if self.end.is_connected else 0

    def receive(self) -> bytes | None:
        with suppress(BlockingIOError):
            os.eventfd_read(self._events)
        return self.end.receive()

    def close(self) -> None:
        self._epoll.close()
