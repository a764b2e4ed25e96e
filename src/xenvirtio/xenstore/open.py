"""Opening XenStore in a program that may run before it is there.

Waiting costs a look at a socket and at `/proc/interrupts`, after 50 ms first, then less and less often, once a second
in the end: there is nothing to poll, since the kernel's device says nothing of its readiness.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from xenvirtio.channels.xenbus_device import KernelStore
from xenvirtio.errors import ResourceError
from xenvirtio.xenstore.client import RETRY_FIRST_S, RETRY_MOST_S, XenStoreClient
from xenvirtio.xenstore.connect import Presence, connect_default, connect_path, look

ABSENT_S = 0.5
"""How long ABSENT must last to be believed. When XenStore comes late the kernel takes one handler away before it sets
up the other, and for that moment `/proc/interrupts` shows neither (Linux drivers/xen/xenbus/xenbus_probe.c,
xenbus_probe)."""

ANSWER_S = 5.0
"""What a server that is there gets for its first answer at least, whatever the caller's patience."""


class StoreNotReadyError(ResourceError):
    """There is no XenStore to talk to: ABSENT, it will never come; LATE, it did not come in time."""

    def __init__(self, presence: Presence, waited_s: float) -> None:
        self.state = presence.state
        if presence.state is KernelStore.ABSENT:
            message = f"no XenStore: {presence.reason}"
        else:
            waited = f" after {waited_s:g} s" if waited_s else ""
            message = f"XenStore is not there yet{waited}: {presence.reason}"
        super().__init__(message)


def wait_store(
    timeout_s: float,
    path: Path | None = None,
    *,
    look: Callable[[Path | None], Presence] = look,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Presence:
    """Wait until there is a way to XenStore: a server that listens (at `path`, if given), or the kernel's device.

    Raises:
        StoreNotReadyError: at once when there will never be one, after `timeout_s` when it is late.
    """
    started_s = clock()
    absent_since_s: float | None = None
    pause_s = RETRY_FIRST_S
    while True:
        presence, now_s = look(path), clock()
        if presence.state is KernelStore.READY:
            return presence
        if presence.state is KernelStore.LATE:
            absent_since_s = None
        elif absent_since_s is None:
            absent_since_s = now_s
        if absent_since_s is not None and now_s - absent_since_s >= ABSENT_S:
            raise StoreNotReadyError(presence, now_s - started_s)
        remaining_s = started_s + timeout_s - now_s
        if remaining_s <= 0 and absent_since_s is None:
            raise StoreNotReadyError(presence, timeout_s)
        sleep(pause_s if absent_since_s is not None else min(pause_s, remaining_s))
        pause_s = RETRY_FIRST_S if absent_since_s is not None else min(2 * pause_s, RETRY_MOST_S)


def open_store(wait_s: float = 0.0, path: Path | None = None) -> XenStoreClient:
    """Return a client of a server that has answered.

    Raises:
        StoreNotReadyError: ABSENT at once; LATE after `wait_s`; or a server that is there but does not answer.
    """
    deadline_s = time.monotonic() + wait_s
    presence = wait_store(wait_s, path)
    client = XenStoreClient(connect_default if path is None else lambda: connect_path(path))
    if not client.wait_ready(max(ANSWER_S, deadline_s - time.monotonic())):
        client.close()
        reason = f"{presence.reason}, but the server does not answer"
        raise StoreNotReadyError(Presence(KernelStore.LATE, reason), wait_s)
    return client
