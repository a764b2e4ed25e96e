"""Log lines about what a guest can cause for ever: a few at once, then a bounded rate and a count of the rest."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

BURST = 5
INTERVAL_S = 10.0


class BoundedLog:
    """At most `BURST` lines per `INTERVAL_S`; the first one after a pause says how many were held back."""

    def __init__(self, log: logging.Logger, name: str, clock: Callable[[], float]) -> None:
        self._log = log
        self._name = name
        self._clock = clock
        self._lock = threading.Lock()
        self._interval_start = -INTERVAL_S
        self._in_interval = 0
        self.held_back = 0

    def warning(self, message: object) -> None:
        """Log `message` or count it; callable from any thread."""
        self._write(logging.WARNING, message)

    def info(self, message: object) -> None:
        """As `warning`, for what is nothing to worry about."""
        self._write(logging.INFO, message)

    def _write(self, level: int, message: object) -> None:
        with self._lock:
            now = self._clock()
            if now - self._interval_start >= INTERVAL_S:
                self._interval_start, self._in_interval = now, 0
            self._in_interval += 1
            if self._in_interval > BURST:
                self.held_back += 1
                return
            held_back, self.held_back = self.held_back, 0
        more = f" ({held_back} more like this were not logged)" if held_back else ""
        self._log.log(level, "%s: %s%s", self._name, message, more)
