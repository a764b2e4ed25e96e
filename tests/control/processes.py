"""`xenvirtio control` and `xenvirtio serve --plan` as processes on an emulated host, and a guest that works on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import xenvirtio
from tests.sandbox.rig import PATIENCE_S
from xenvirtio.sandbox.toolstack import CreatedDevice, CreatedGuest, Toolstack
from xenvirtio.xen.emulated import Domain

BASE, IRQ = 0x0200_0000, 33


def until(condition: Any) -> None:
    assert Toolstack.wait_for(condition, PATIENCE_S), "the condition did not come true"


def planned_guest(name: str, domain: Domain, *, grants: bool) -> CreatedGuest:
    """A guest as `tests.sandbox.rig` drives it, its disk as a plan has it."""
    backend = f"/local/domain/0/backend/virtio/{domain.domid}/0"
    frontend = f"/local/domain/{domain.domid}/device/virtio/0"
    return CreatedGuest(name, domain, (CreatedDevice(BASE, IRQ, backend, frontend, grants),))


class Program:
    """A command of ours in a session of its own, so that a test can see and end its children."""

    def __init__(self, *arguments: str | Path, log: Path) -> None:
        paths = [str(Path(xenvirtio.__file__).parents[1]), os.environ.get("PYTHONPATH")]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
        command = [sys.executable, "-m", "xenvirtio", *map(str, arguments), "--log-format", "json"]
        self.log_path = log
        self._skip = len(self._lines())
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stderr=output, env=environment, start_new_session=True
            )

    def _lines(self) -> list[str]:
        return self.log_path.read_text().splitlines() if self.log_path.exists() else []

    def log(self) -> list[dict[str, Any]]:
        """What it and its children have said, except what is no JSON."""
        found = []
        for line in self._lines()[self._skip :]:
            try:
                found.append(json.loads(line))
            except ValueError:
                found.append({"message": line, "level": "raw"})
        return found

    def messages(self) -> list[str]:
        return [str(line["message"]) for line in self.log()]

    def child(self, name: str) -> int:
        """The process number of a child of control, as it was started last."""
        return int([line["pid"] for line in self.log() if line["message"] == f"{name} started"][-1])

    def starts(self, name: str) -> int:
        return self.messages().count(f"{name} started")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def terminate(self) -> int:
        self.process.terminate()
        return self.process.wait(PATIENCE_S)

    def close(self) -> None:
        """End it with all its children, whatever a test has done to them."""
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()
