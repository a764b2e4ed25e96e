"""The host's end of the agent's port: requests out, replies back, from any thread."""

from __future__ import annotations

import itertools
import json
import socket
import threading
import time
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from pathlib import Path
from typing import Any

from xenvirtio.errors import PeerProtocolError, ResourceError

REPLY_GRACE_S = 60.0
"""How long past an operation's own time limit a reply may take: the emulated machine can be very slow."""


class AgentChannel:
    """A connection to the agent in dom0. Only one at a time can be open: the port has one other end.

    Operations and their arguments are the `op_*` functions of `agent.py`.
    """

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.connect(str(path))
        except OSError as error:
            self._socket.close()
            raise ResourceError(f"agent socket {path}: {error.strerror}") from error
        self._numbers = itertools.count(time.monotonic_ns())
        self._waiting: dict[int, Future[dict[str, Any]]] = {}
        self._lock = threading.Lock()
        self._closed = False
        threading.Thread(target=self._read, daemon=True).start()

    def request(self, operation: str, reply_timeout_s: float, /, **arguments: Any) -> dict[str, Any]:
        """Send a request and wait for its result.

        Raises:
            ResourceError: the operation failed in dom0, no reply came in time, or the connection broke.
        """
        number = next(self._numbers)
        future: Future[dict[str, Any]] = Future()
        data = json.dumps({"id": number, "op": operation, **arguments}).encode()
        with self._lock:
            if self._closed:
                raise ResourceError("the connection to dom0's agent is closed")
            self._waiting[number] = future
            try:
                self._socket.sendall(b"\n" + data + b"\n")
            except OSError as error:
                raise ResourceError(f"dom0's agent: {error.strerror}") from error
        try:
            reply = future.result(reply_timeout_s)
        except FutureTimeoutError:
            raise ResourceError(f"dom0's agent did not answer {operation!r} within {reply_timeout_s:.0f} s") from None
        finally:
            with self._lock:
                self._waiting.pop(number, None)
        if not reply["ok"]:
            raise ResourceError(f"dom0's agent: {operation}: {reply['error']}")
        result: dict[str, Any] = reply["result"]
        return result

    def close(self) -> None:
        """Close the connection; requests under way fail."""
        with self._lock:
            self._closed = True
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self._socket.close()

    def _read(self) -> None:
        rest = b""
        try:
            while True:
                part = self._socket.recv(1 << 16)
                if not part:
                    raise PeerProtocolError("the machine closed the agent's port")
                *lines, rest = (rest + part).split(b"\n")
                for line in lines:
                    self._take(line)
        except (OSError, PeerProtocolError) as error:
            with self._lock:
                self._closed = True
                waiting, self._waiting = list(self._waiting.values()), {}
            for future in waiting:
                future.set_exception(ResourceError(f"the connection to dom0's agent broke: {error}"))

    def _take(self, line: bytes) -> None:
        """One line from the agent. What is no object, or answers nobody, was for a host program before us."""
        try:
            reply = json.loads(line)
        except ValueError:
            return
        number = reply.get("id") if isinstance(reply, dict) else None
        with self._lock:
            future = self._waiting.pop(number, None) if isinstance(number, int) else None
        if future is not None:
            future.set_result(reply)
