"""The thinnest XenStore client there is: ready-made requests out, replies and events counted.

`xenstore.client` waits, reconnects and lets threads share it; here every microsecond of the client would be counted
with the server's.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path

from xenvirtio.bench.store_ring import RingCarrier
from xenvirtio.errors import ConfigurationError, PeerProtocolError, XenStoreError
from xenvirtio.xenstore.wire import HEADER_SIZE, Message, MessageType, parse_error

TIMEOUT_S = 60.0
"""A server that takes longer for one answer hangs, or is not worth measuring."""

_TYPE_AND_LENGTH = struct.Struct("<I8xI")


def request(kind: MessageType, payload: bytes, transaction: int = 0) -> bytes:
    """Return an encoded request."""
    return Message(kind, 1, transaction, payload).encode()


class BenchClient:
    """One connection. Requests are answered in order by every server there is, so ids do not matter."""

    def __init__(self, carrier: socket.socket | RingCarrier) -> None:
        carrier.settimeout(TIMEOUT_S)
        self._carrier = carrier
        self._pending = bytearray()
        self._events = 0
        """Events that have come while a reply was awaited."""

    @classmethod
    def at(cls, path: Path) -> BenchClient:
        """Connect to a server's socket.

        Raises:
            ConfigurationError: nobody listens there.
        """
        carrier = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            carrier.connect(str(path))
        except OSError as error:
            carrier.close()
            raise ConfigurationError(str(path), error.strerror or str(error), "the socket of a XenStore") from error
        return cls(carrier)

    def close(self) -> None:
        self._carrier.close()

    def server_pid(self) -> int:
        """Return the process at the other end of a socket; 0 when the kernel cannot say."""
        if isinstance(self._carrier, RingCarrier):
            return 0
        credentials = self._carrier.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        return int(struct.unpack("iII", credentials)[0])

    def ask(self, encoded: bytes) -> bytes:
        """Send one request and return the payload of its reply.

        Raises:
            XenStoreError: the server refused it.
            PeerProtocolError: the server went away.
        """
        self._carrier.sendall(encoded)
        return self.next_reply()

    def ask_all(self, encoded: bytes, count: int) -> None:
        """Send `count` requests at once and take their replies."""
        self._carrier.sendall(encoded)
        for _ in range(count):
            self.next_reply()

    def send(self, encoded: bytes) -> None:
        """Send requests whose replies are taken later."""
        self._carrier.sendall(encoded)

    def next_reply(self) -> bytes:
        """Return the payload of the next reply; events that come before it are counted."""
        while True:
            kind, payload = self._next_message()
            if kind == MessageType.WATCH_EVENT:
                self._events += 1
            elif kind == MessageType.ERROR:
                raise XenStoreError(parse_error(payload), "bench")
            else:
                return payload

    def wait_event(self) -> None:
        """Take one event."""
        while not self._events:
            kind, _ = self._next_message()
            if kind != MessageType.WATCH_EVENT:
                raise PeerProtocolError(f"a reply of type {kind} that nobody asked for")
            self._events += 1
        self._events -= 1

    def drain_events(self, quiet_s: float = 0.05) -> None:
        """Take events until none has come for so long."""
        self._carrier.settimeout(quiet_s)
        try:
            while True:
                self._next_message()
        except TimeoutError:
            self._events = 0
        finally:
            self._carrier.settimeout(TIMEOUT_S)

    def _next_message(self) -> tuple[int, bytes]:
        pending = self._pending
        while True:
            if len(pending) >= HEADER_SIZE:
                kind, length = _TYPE_AND_LENGTH.unpack_from(pending)
                end = HEADER_SIZE + length
                if len(pending) >= end:
                    payload = bytes(pending[HEADER_SIZE:end])
                    del pending[:end]
                    return kind, payload
            chunk = self._carrier.recv(65536)
            if not chunk:
                raise PeerProtocolError("the server has closed the connection")
            pending += chunk


def process_time_s(pid: int) -> float:
    """Return the processor time that a process has used, all its threads; nan for an unknown process."""
    if pid <= 0:
        return float("nan")
    try:
        return time.clock_gettime(~pid << 3 | 2)  # the clock id of another process's CPU time, see clock_getcpuclockid
    except OSError:
        return float("nan")


def chunks_of(requests: Iterator[bytes], count: int) -> Iterator[tuple[bytes, int]]:
    """Join requests, `count` at a time, to be sent at once."""
    batch: list[bytes] = []
    for encoded in requests:
        batch.append(encoded)
        if len(batch) == count:
            yield b"".join(batch), count
            batch = []
    if batch:
        yield b"".join(batch), len(batch)
