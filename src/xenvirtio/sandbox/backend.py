"""`xenvirtio serve` as a child process on the sandbox: started, killed, replaced, its log read."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import xenvirtio
from xenvirtio.errors import ResourceError

PATIENCE_S = 30.0
"""For a start, a stop or a log line; only a machine in trouble needs that long."""


class BackendProcess:
    """One backend after another over the same configuration. The log of all of them is one file, JSON lines."""

    def __init__(self, system: Path, configuration: Path, log_path: Path) -> None:
        self.log_path = log_path
        self._command = [
            sys.executable, "-m", "xenvirtio", "serve", "--emulated", str(system),
            "--log-format", "json", "--log-level", "debug", str(configuration),
        ]  # fmt: skip
        paths = [str(Path(xenvirtio.__file__).parents[1]), os.environ.get("PYTHONPATH")]
        self._environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
        self._process: subprocess.Popen[bytes] | None = None
        self._seen = 0

    @property
    def pid(self) -> int:
        return self._running().pid

    @property
    def has_ended(self) -> bool:
        """Say whether it ended by itself, or was never started."""
        return self._process is None or self._process.poll() is not None

    def start(self) -> None:
        """Start a process and wait until it serves.

        Raises:
            ResourceError: it ended instead.
        """
        self._seen = len(self.log())
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL, stderr=log, env=self._environment)
        self.wait_for_log("ready")

    def kill(self) -> None:
        """kill -9: nothing in it gets a chance to tidy up."""
        process = self._running()
        process.kill()
        process.wait()

    def terminate(self) -> int:
        """SIGTERM; return the exit code (negative: the signal that killed it)."""
        process = self._running()
        process.terminate()
        try:
            return process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()

    def hang_up(self) -> None:
        """SIGHUP: read the configuration again."""
        self._running().send_signal(signal.SIGHUP)

    def close(self) -> None:
        """Make sure that none is left."""
        if not self.has_ended:
            self.kill()

    def log(self) -> list[dict[str, Any]]:
        """All lines so far; what is not JSON (a traceback of an ending interpreter) comes as level `raw`."""
        try:
            text = self.log_path.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return []
        return [_parse_line(line) for line in text.splitlines()]

    def wait_for_log(self, message: str) -> dict[str, Any]:
        """Wait for a line containing `message` that no earlier call has returned or passed over.

        Raises:
            ResourceError: it did not come, or the process ended.
        """
        deadline = time.monotonic() + PATIENCE_S
        while True:
            ended = self.has_ended
            lines = self.log()
            for number in range(self._seen, len(lines)):
                if message in lines[number]["message"]:
                    self._seen = number + 1
                    return lines[number]
            if ended or time.monotonic() > deadline:
                last = lines[-1]["message"] if lines else "nothing logged"
                raise ResourceError(f"the backend did not say {message!r}; its last words: {last} ({self.log_path})")
            time.sleep(0.005)

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise ResourceError("no backend was started")
        return self._process


def _parse_line(line: str) -> dict[str, Any]:
    try:
        parsed = json.loads(line)
    except ValueError:
        parsed = None
    if isinstance(parsed, dict) and "message" in parsed and "level" in parsed:
        return parsed
    return {"level": "raw", "message": line}
