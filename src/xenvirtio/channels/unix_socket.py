"""A Unix stream socket as a channel."""

from __future__ import annotations

import socket
from pathlib import Path

_CHUNK_BYTES = 65536


class UnixSocketChannel:
    """Takes over a connected socket."""

    message_max_bytes = 1 << 30

    def __init__(self, connected: socket.socket) -> None:
        connected.setblocking(False)
        self._socket = connected

    @classmethod
    def connect(cls, path: str | Path) -> UnixSocketChannel:
        """Connect to a listening socket.

        Raises:
            OSError: nobody listens there.
        """
        connected = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connected.setblocking(False)  # one that accepts nobody must not hold us: EAGAIN when its queue is full
        try:
            connected.connect(str(path))
        except OSError:
            connected.close()
            raise
        return cls(connected)

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, message: bytes) -> int:
        try:
            return self._socket.send(message, socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return 0

    def receive(self) -> bytes | None:
        try:
            return self._socket.recv(_CHUNK_BYTES) or None
        except BlockingIOError:
            return b""
        except ConnectionResetError:
            return None

    def close(self) -> None:
        self._socket.close()
