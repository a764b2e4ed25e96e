"""What happened on the host, counted by kind."""

from __future__ import annotations

import threading
from collections import Counter


class Counters:
    """Named counters that any thread may add to.

    Kinds: `mmio_exits`, `invalidates`, `events_to_backend`, `events_to_guest`, `interrupts`, `grant_copy_segments`,
    and `hypercall.<operation>`. A backend notifies without asking the host, so an event to a guest counts when the
    guest takes it, with all the notifications that merged into it.
    """

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def add(self, kind: str, count: int = 1) -> None:
        with self._lock:
            self._counts[kind] += count

    def snapshot(self) -> dict[str, int]:
        with self._lock:
            return dict(sorted(self._counts.items()))
