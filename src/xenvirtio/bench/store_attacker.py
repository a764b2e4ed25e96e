"""A hostile domain, as a process of its own: it stops itself once it is ready, and is let loose by SIGCONT."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Callable

from xenvirtio.bench.store_client import BenchClient, request
from xenvirtio.errors import XenStoreError
from xenvirtio.xenstore.wire import MessageType, join_strings

VICTIM_NODE = b"/local/domain/1/device/0/state"
"""Domain 1 lets everybody read it, as a backend's or frontend's state is read by its peer."""

AT_ONCE = 64
WATCHES = 120
"""Nearly all of the watch quota."""


def flood(client: BenchClient) -> None:
    """Write its own node as fast as it can, many requests on the way at any time."""
    encoded = request(MessageType.WRITE, b"flood\0value") * AT_ONCE
    pause()
    while True:
        client.ask_all(encoded, AT_ONCE)


def deaf(client: BenchClient) -> None:
    """Send requests and never read a reply."""
    encoded = request(MessageType.READ, VICTIM_NODE + b"\0") * AT_ONCE
    pause()
    while True:
        client.send(encoded)


def hoard(client: BenchClient) -> None:
    """Watch what the victim writes with all it has, and take the events."""
    for number in range(WATCHES):
        client.ask(request(MessageType.WATCH, join_strings((VICTIM_NODE, b"token-%d" % number))))
    pause()
    while True:
        client.wait_event()


def hoard_root(client: BenchClient) -> None:
    """Watch everything with all it has, though it may not see most of it."""
    for number in range(WATCHES):
        client.ask(request(MessageType.WATCH, join_strings((b"/", b"token-%d" % number))))
    pause()
    while True:
        client.wait_event()


def transact(client: BenchClient) -> None:
    """Read the victim's node and write its own in transactions without end, some of them left open."""
    start = request(MessageType.TRANSACTION_START, b"\0")
    for _ in range(5):
        client.ask(start)
    pause()
    while True:
        number = int(client.ask(start).rstrip(b"\0"))
        client.ask(request(MessageType.READ, VICTIM_NODE + b"\0", number))
        client.ask(request(MessageType.WRITE, b"own\0value", number))
        try:
            client.ask(request(MessageType.TRANSACTION_END, b"T\0", number))
        except XenStoreError:
            pass  # a conflict: once more


def spin(client: BenchClient) -> None:
    """Use a processor and leave XenStore alone: what any process beside the victim costs it on this machine."""
    pause()
    while True:
        pass


ATTACKS: dict[str, Callable[[BenchClient], None]] = {
    "a busy process": spin,
    "a flood of writes": flood,
    "a flood, replies unread": deaf,
    "120 watches on its node": hoard,
    "120 watches on /": hoard_root,
    "transactions without end": transact,
}


def pause() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


if __name__ == "__main__":
    carrier = socket.socket(fileno=int(sys.argv[2]))
    attacker = BenchClient(carrier)
    carrier.settimeout(None)  # it may be stopped, or not be read, for long
    ATTACKS[sys.argv[1]](attacker)
