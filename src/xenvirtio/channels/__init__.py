"""Byte pipes to the other end of a protocol."""

from __future__ import annotations

from typing import Protocol


class Channel(Protocol):
    """A byte stream that never blocks. Errors of the operating system rise as OSError."""

    message_max_bytes: int
    """The longest message, header included, that it carries."""

    def fileno(self) -> int:
        """Readable when `receive` has something to say."""

    def send(self, message: bytes) -> int:
        """Send (the rest of) one message; return how many bytes went, 0 when there is no room now."""

    def receive(self) -> bytes | None:
        """Return what has arrived, empty when nothing has; None when the other end is gone."""

    def close(self) -> None: ...
