"""One emulated Arm machine that runs Xen and dom0: started, found again, stopped.

The machine is a QEMU process of its own that outlives the program that started it. Its sockets, logs and
`state.json` are in the run folder; a machine runs when the process named there has that folder in its command line.
Everything a machine writes to its disks vanishes with it (`snapshot=on`).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from xenvirtio.errors import ResourceError
from xenvirtio.lab.agent import PORT_NAME
from xenvirtio.lab.channel import AgentChannel
from xenvirtio.lab.console import trouble_in
from xenvirtio.lab.dom0 import Dom0
from xenvirtio.lab.monitor import execute
from xenvirtio.lab.paths import run_folder

BOOT_TIMEOUT_S = 180.0
"""A boot takes about 15 s on an idle machine; beside other work it was seen to take several times that."""

STOP_TIMEOUT_S = 30.0
POLL_S = 0.1
DOM0_KERNEL_ADDRESS = 0x49000000
"""Where QEMU's loader puts dom0's kernel: above Xen, below the rest of what Xen allocates early."""


@dataclass(frozen=True, slots=True)
class Images:
    """What a machine boots from; see `build.build_all`."""

    xen: Path
    linux: Path
    root: Path
    guests: Path
    package: Path


@dataclass(frozen=True, slots=True)
class MachineOptions:
    """The size of the machine and additions to the two command lines."""

    memory_mib: int = 3072
    dom0_memory_mib: int = 768
    processors: int = 2
    dom0_processors: int = 2
    xen_arguments: str = ""
    linux_arguments: str = ""


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

    def stop(self) -> None:
        """Switch the machine off: dom0's own power-off first, QEMU's `quit` when that takes too long, then a kill."""
        try:
            self.dom0().channel.request("run", 5.0, command="poweroff -f", timeout_s=4.0)
        except ResourceError:
            pass  # the reply does not outlive the machine
        self.close()
        if not self._wait_gone(STOP_TIMEOUT_S / 3):
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
        raise ResourceError(f"lab machine {name!r} is running already; stop it with 'xenvirtio lab down'")
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


def qemu_command(images: Images, folder: Path, options: MachineOptions) -> list[str]:
    """The command line of the emulated machine."""
    xen = f"dom0_mem={options.dom0_memory_mib}M dom0_max_vcpus={options.dom0_processors} console=dtuart noreboot"
    linux = "root=/dev/vda rw init=/init console=hvc0 quiet loglevel=4"
    # Linux finds the last of QEMU's virtio-mmio devices first, so dom0's root, its /dev/vda, stands at the end.
    disks = {"package": images.package, "guests": images.guests, "dom0": images.root}
    command = ["qemu-system-aarch64", "-name", f"xenvirtio-lab-{folder.name}", "-accel", "tcg,thread=multi"]
    command += ["-machine", "virt,virtualization=on,gic-version=3", "-cpu", "cortex-a57"]
    command += ["-smp", str(options.processors), "-m", str(options.memory_mib)]
    command += ["-display", "none", "-monitor", "none", "-no-reboot", "-nodefaults"]
    command += [*_socket_device("qmp", folder / "qmp"), "-mon", "chardev=qmp,mode=control"]
    command += [*_socket_device("serial", folder / "serial", folder / "serial.log"), "-serial", "chardev:serial"]
    command += _socket_device("agent", folder / "agent")
    command += ["-device", "virtio-serial-device", "-device", f"virtserialport,chardev=agent,name={PORT_NAME}"]
    for serial, image in disks.items():
        command += ["-drive", f"if=none,id={serial},file={_escape(image)},format=raw,snapshot=on,cache=unsafe"]
        command += ["-device", f"virtio-blk-device,drive={serial},serial={serial}"]
    command += ["-kernel", str(images.xen), "-append", f"{xen} {options.xen_arguments}".strip()]
    arguments = f"{linux} {options.linux_arguments}".strip().replace(",", ",,")
    loader = f"guest-loader,addr={DOM0_KERNEL_ADDRESS:#x},kernel={_escape(images.linux)},bootargs={arguments}"
    return [*command, "-device", loader]


def running_names() -> Sequence[str]:
    """Names of all machines that run."""
    return [folder.name for folder in sorted(run_folder().parent.iterdir()) if find(folder.name) is not None]


def _socket_device(name: str, path: Path, log: Path | None = None) -> list[str]:
    device = f"socket,id={name},path={_escape(path)},server=on,wait=off"
    return ["-chardev", device if log is None else f"{device},logfile={_escape(log)}"]


def _escape(path: Path) -> str:
    """A path inside a QEMU option, where a comma is written twice."""
    return str(path).replace(",", ",,")


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
