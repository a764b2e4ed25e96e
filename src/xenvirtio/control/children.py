"""Child processes that are started again whenever they end."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

from xenvirtio.control.lifeline import PARENT

log = logging.getLogger("xenvirtio.control")

DELAY_FIRST_S = 0.1
DELAY_MOST_S = 10.0
STEADY_S = 10.0
"""A child that ran so long is started again at once; one that ends sooner waits twice as long each time."""

PATIENCE_S = 15.0
"""For a child to end by itself after SIGTERM."""


class Child:
    """One `xenvirtio` command that has to run all the time."""

    def __init__(
        self,
        name: str,
        arguments: Sequence[str],
        *,
        takes_hang_up: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self.takes_hang_up = takes_hang_up
        """Does SIGHUP mean something else to it than its end?"""
        self.starts = 0
        self.last_code: int | None = None
        """How it ended the last time; negative: the signal that killed it."""
        self._command = [sys.executable, "-m", "xenvirtio", *arguments]
        self._clock = clock
        self._process: subprocess.Popen[bytes] | None = None
        self._pidfd = -1
        self._started_s = 0.0
        self._delay_s = DELAY_FIRST_S
        self._due_s: float | None = None

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    def fileno(self) -> int:
        """A descriptor that is readable once the running child has ended; -1 while none runs."""
        return self._pidfd

    def start(self) -> None:
        """Start it. Call from the thread that lives as long as this process: the kernel ends the child with it."""
        environment = {**os.environ, PARENT: str(os.getpid())}
        self._process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL, env=environment)
        self._pidfd = os.pidfd_open(self._process.pid)
        self._started_s = self._clock()
        self._due_s = None
        self.starts += 1
        log.info("%s started", self.name, extra={"pid": self._process.pid})

    def check(self) -> None:
        """Notice an end, and start it again when that is due."""
        if self._process is not None and self._process.poll() is not None:
            self.last_code = self._process.returncode
            self._close()
            lived_s = self._clock() - self._started_s
            delay_s = 0.0 if lived_s >= STEADY_S else self._delay_s
            self._delay_s = DELAY_FIRST_S if lived_s >= STEADY_S else min(self._delay_s * 2, DELAY_MOST_S)
            self._due_s = self._clock() + delay_s
            log.warning("%s ended (%s); starting it again", self.name, _ending(self.last_code))
        if self._process is None and self._due_s is not None and self._clock() >= self._due_s:
            self.start()

    def due_in_s(self) -> float | None:
        """How long until `check` has something to do that no descriptor tells."""
        return None if self._due_s is None else max(0.0, self._due_s - self._clock())

    def send(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)

    def stop(self) -> None:
        """End it for good: SIGTERM, and after a while SIGKILL."""
        self._due_s = None
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            log.error("%s did not end within %g s; killed", self.name, PATIENCE_S)
            self._process.kill()
            self._process.wait()
        self._close()

    def _close(self) -> None:
        self._process = None
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1


def _ending(code: int) -> str:
    return f"exit code {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"
