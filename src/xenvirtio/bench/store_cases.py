"""What is measured: one operation each, done over and over by the first domain of a population."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from xenvirtio.bench.store_client import BenchClient, process_time_s, request
from xenvirtio.errors import XenStoreError
from xenvirtio.xenstore.wire import MessageType, join_strings

PIPELINED = 16
STEPS_BETWEEN_LOOKS = 20
"""Steps done before the clock is read again."""

Step = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Case:
    """One kind of operation. `prepare(client, home)` returns the step to be timed; each does `operations`."""

    name: str
    prepare: Callable[[BenchClient, bytes], Step]
    operations: int = 1


@dataclass(frozen=True, slots=True)
class Sample:
    """Microseconds per operation: by the wall clock, and of the server's processor time (nan: unknown)."""

    wall_us: float
    server_us: float


def measure(case: Case, client: BenchClient, home: bytes, server_pid: int, seconds: float) -> Sample:
    """Repeat an operation for about `seconds`."""
    step = case.prepare(client, home)
    steps = 0
    server_before, started = process_time_s(server_pid), time.perf_counter()
    while (elapsed := time.perf_counter() - started) < seconds:
        for _ in range(STEPS_BETWEEN_LOOKS):
            step()
        steps += STEPS_BETWEEN_LOOKS
    server_s = process_time_s(server_pid) - server_before
    finish(client, home)
    operations = steps * case.operations
    return Sample(elapsed * 1e6 / operations, server_s * 1e6 / operations)


def _place(home: bytes) -> bytes:
    return home + b"/device/0/state"


def _read(client: BenchClient, home: bytes) -> Step:
    encoded = request(MessageType.READ, _place(home) + b"\0")
    return lambda: client.ask(encoded)


def _read_pipelined(client: BenchClient, home: bytes) -> Step:
    encoded = request(MessageType.READ, _place(home) + b"\0") * PIPELINED
    return lambda: client.ask_all(encoded, PIPELINED)


def _write(client: BenchClient, home: bytes) -> Step:
    encoded = request(MessageType.WRITE, _place(home) + b"\x005")
    return lambda: client.ask(encoded)


def _directory(client: BenchClient, home: bytes) -> Step:
    encoded = request(MessageType.DIRECTORY, home + b"/device/0\0")
    return lambda: client.ask(encoded)


def _transaction(client: BenchClient, home: bytes) -> Step:
    start = request(MessageType.TRANSACTION_START, b"\0")

    def step() -> None:
        number = int(client.ask(start).rstrip(b"\0"))
        client.ask(request(MessageType.READ, _place(home) + b"\0", number))
        client.ask(request(MessageType.WRITE, _place(home) + b"\x006", number))
        client.ask(request(MessageType.TRANSACTION_END, b"T\0", number))

    return step


def _event(client: BenchClient, home: bytes) -> Step:
    watch = join_strings((_place(home), b"bench"))
    client.ask(request(MessageType.WATCH, watch))
    client.wait_event()
    encoded = request(MessageType.WRITE, _place(home) + b"\x007")

    def step() -> None:
        client.ask(encoded)
        client.wait_event()

    return step


def finish(client: BenchClient, home: bytes) -> None:
    """Undo what `_event` registered, so that no other case pays for it."""
    with suppress(XenStoreError):
        client.ask(request(MessageType.UNWATCH, join_strings((_place(home), b"bench"))))


CASES = (
    Case("read", _read),
    Case("read, 16 sent at once", _read_pipelined, PIPELINED),
    Case("directory", _directory),
    Case("write", _write),
    Case("write and its watch event", _event),
    Case("transaction (read, write)", _transaction),
)
