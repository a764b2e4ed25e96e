"""One emulated Arm machine that runs Xen and dom0: started, found again, stopped.

The machine is a QEMU process of its own that outlives the program that started it. Its sockets, logs and
`state.json` are in the run folder; a machine runs when the process named there has that folder in its command line.
Everything a machine writes to its disks vanishes with it (`snapshot=on`).
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from xenvirtio.errors import ResourceError
from xenvirtio.ids import DomId
from xenvirtio.lab.channel import AgentChannel
from xenvirtio.lab.console import trouble_in
from xenvirtio.lab.dom0 import Dom0
from xenvirtio.lab.domain_console import domain_lines
from xenvirtio.lab.monitor import execute
from xenvirtio.lab.options import Images, MachineOptions
from xenvirtio.lab.paths import run_folder
from xenvirtio.lab.qemu import qemu_command

BOOT_TIMEOUT_S = 180.0
"""A boot takes about 15 s on an idle machine; beside other work it was seen to take several times that."""

STOP_TIMEOUT_S = 30.0
POLL_S = 0.1


class Machine:
    """A running machine. Get one from `start` or `find`."""

    def __init__(self, folder: Path, pid: int) -> None:
        self.folder = folder
        self.pid = pid
        self._dom0: Dom0 | None = None

    @property
    def monitor_path(self) -> Path:
        """QEMU's monitor (QMP)."""
        return self.folder / "qmp"

    @property
    def serial_path(self) -> Path:
        """The serial console: Xen's messages and a shell in dom0."""
        return self.folder / "serial"

    @property
    def serial_log(self) -> Path:
        """All that was said on the serial console."""
        return self.folder / "serial.log"

    def is_running(self) -> bool:
        """Whether QEMU is still there."""
        return _is_ours(self.pid, self.folder)

    def dom0(self) -> Dom0:
        """dom0, connected on first use.

        Raises:
            ResourceError: its agent cannot be reached.
        """
        if self._dom0 is None:
            self._dom0 = Dom0(AgentChannel(self.folder / "agent"))
        return self._dom0

    def wait_until_up(self, timeout_s: float = BOOT_TIMEOUT_S) -> Dom0:
        """Wait for dom0's agent; it starts after Xen's daemons.

        Raises:
            ResourceError: the machine ended or panicked, or time is up; the message has the console's last lines.
        """
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if not self.is_running():
                raise ResourceError(f"the lab machine ended while booting; {self._last_lines()}")
            trouble = trouble_in(self.serial_log)
            if trouble:
                raise ResourceError(f"the lab machine is lost: {trouble}; {self._last_lines()}")
            # What is sent before the agent listens is dropped, so ask again and again.
            try:
                self.dom0().channel.request("ping", 2.0)
            except ResourceError:
                time.sleep(POLL_S)
                continue
            return self.dom0()
        raise ResourceError(f"dom0 did not come up within {timeout_s:.0f} s; {self._last_lines()}")

    def domain_lines(self, domid: int) -> list[str]:
        """What a dom0less domain with an emulated pl011 has printed on Xen's console so far, its finished lines."""
        if not self.serial_log.exists():
            return []
        return domain_lines(self.serial_log.read_bytes().decode(errors="replace"), DomId(domid))

    def wait_line(self, domid: int, pattern: str, timeout_s: float = BOOT_TIMEOUT_S, *, after: int = 0) -> str:
        """Wait until a line of a dom0less domain, not one of its first `after`, matches; gives that line.

        Raises:
            ResourceError: the machine ended, Xen or dom0 panicked, or time is up; the message has the domain's last
                lines. A panic of the domain itself is waited out: it may be what the scenario is about.
        """
        expression = re.compile(pattern)
        deadline = time.monotonic() + timeout_s
        while True:
            lines = self.domain_lines(domid)
            for line in lines[after:]:
                if expression.search(line):
                    return line
            said = f"domain {domid} said last:\n  " + "\n  ".join(lines[-12:])
            if not self.is_running():
                raise ResourceError(f"the lab machine ended while waiting for {pattern!r}; {said}")
            trouble = trouble_in(self.serial_log)
            if trouble:
                raise ResourceError(f"the lab machine is lost: {trouble}; {said}")
            if time.monotonic() > deadline:
                raise ResourceError(f"domain {domid} did not say {pattern!r} within {timeout_s:.0f} s; {said}")
            time.sleep(POLL_S)

    def stop(self, *, at_once: bool = False) -> None:
        """Switch the machine off: dom0's own power-off first, QEMU's `quit` when that takes too long, then a kill.

        `at_once` leaves out the first; nothing is lost by it, since disks are never kept.
        """
        if not at_once:
            try:
                self.dom0().channel.request("run", 5.0, command="poweroff -f", timeout_s=4.0)
            except ResourceError:
                pass  # the reply does not outlive the machine
        self.close()
        if at_once or not self._wait_gone(STOP_TIMEOUT_S / 3):
            try:
                execute(self.monitor_path, "quit")
            except ResourceError:
                pass
        if not self._wait_gone(STOP_TIMEOUT_S / 3) and self.is_running():
            os.kill(self.pid, signal.SIGKILL)
            self._wait_gone(STOP_TIMEOUT_S / 3)
        (self.folder / "state.json").unlink(missing_ok=True)

    def close(self) -> None:
        """Let go of the machine without stopping it."""
        if self._dom0 is not None:
            self._dom0.channel.close()
            self._dom0 = None

    def _wait_gone(self, timeout_s: float) -> bool:
        deadline = time.monotonic() + timeout_s
        while self.is_running():
            if time.monotonic() > deadline:
                return False
            time.sleep(POLL_S)
        return True

    def _last_lines(self) -> str:
        lines = []
        for name in ("qemu.log", "serial.log"):
            log = self.folder / name
            if log.exists():
                lines += log.read_text(errors="replace").splitlines()[-12:]
        return f"{self.serial_log} ends:\n  " + "\n  ".join(lines)


def find(name: str = "default") -> Machine | None:
    """The running machine of that name, or None."""
    folder = run_folder(name)
    try:
        state = json.loads((folder / "state.json").read_text())
    except (FileNotFoundError, ValueError):
        return None
    pid = int(state["pid"])
    return Machine(folder, pid) if _is_ours(pid, folder) else None


def start(images: Images, name: str = "default", options: MachineOptions | None = None) -> Machine:
    """Start a machine; returns at once, `wait_until_up` waits for dom0.

    Raises:
        ResourceError: one of that name runs already, or QEMU does not start.
    """
    if find(name) is not None:
        raise ResourceError(f"lab machine {name!r} is running already; stop it with 'xenvirtio lab down --name {name}'")
    folder = run_folder(name)
    for leftover in ("qmp", "serial", "agent", "serial.log", "qemu.log"):
        (folder / leftover).unlink(missing_ok=True)
    command = qemu_command(images, folder, options or MachineOptions())
    with (folder / "qemu.log").open("wb") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    (folder / "state.json").write_text(json.dumps({"pid": process.pid, "started": time.time()}) + "\n")
    deadline = time.monotonic() + STOP_TIMEOUT_S
    while not (folder / "agent").exists():
        if process.poll() is not None or time.monotonic() > deadline:
            raise ResourceError(f"QEMU did not start: {(folder / 'qemu.log').read_text(errors='replace').strip()}")
        time.sleep(POLL_S)
    return Machine(folder, process.pid)


def running_names() -> Sequence[str]:
    """Names of all machines that run."""
    return [folder.name for folder in sorted(run_folder().parent.iterdir()) if find(folder.name) is not None]


def _is_ours(pid: int, folder: Path) -> bool:
    """Whether this process is the QEMU of that run folder, and no zombie."""
    try:
        finished, _ = os.waitpid(pid, os.WNOHANG)  # our own child would stay a zombie otherwise
        if finished:
            return False
    except ChildProcessError:
        pass
    try:
        return str(folder / "agent").encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
