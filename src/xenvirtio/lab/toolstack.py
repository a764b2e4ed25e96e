"""Guests through dom0's `xl`: configuration, creation, consoles, end."""

from __future__ import annotations

import base64
import json
import shlex
import time
from dataclasses import dataclass, field
from enum import Enum

from xenvirtio.errors import ResourceError, UsageError
from xenvirtio.ids import DomId
from xenvirtio.lab.channel import REPLY_GRACE_S
from xenvirtio.lab.dom0 import CommandError, Dom0, Result

PROMPT = r"guest# "
"""What /shell in the guests' initramfs shows when it takes a command."""

CREATE_TIMEOUT_S = 180.0
BOOT_TIMEOUT_S = 240.0
LINE_LIMIT_BYTES = 3500
"""A terminal's input line ends at 4096 bytes, the rest is lost."""


class MemoryMode(Enum):
    """How the backend reaches the guest's memory; the value is libxl's `grant_usage`."""

    FOREIGN = 0
    GRANT = 1


@dataclass(frozen=True, slots=True)
class Disk:
    """A virtio disk by libxl's `disk=` line; `target` is a path in dom0."""

    target: str
    device: str = "xvda"
    mode: MemoryMode = MemoryMode.FOREIGN
    read_only: bool = False

    def line(self) -> str:
        """As xl reads it."""
        access = "ro" if self.read_only else "rw"
        return (
            f"format=raw, vdev={self.device}, access={access}, backendtype=standalone, specification=virtio, "
            f"grant_usage={self.mode.value}, target={self.target}"
        )


@dataclass(frozen=True, slots=True)
class GuestConfig:
    """An xl configuration. `virtio` holds whole lines of libxl's `virtio=` list."""

    name: str
    memory_mib: int = 128
    vcpus: int = 1
    disks: tuple[Disk, ...] = ()
    virtio: tuple[str, ...] = ()
    kernel: str = "/lab/Image"
    ramdisk: str = "/lab/initramfs.gz"
    arguments: str = "console=hvc0 rdinit=/init"
    on_reboot: str = "restart"
    extra: dict[str, str | int] = field(default_factory=dict)

    def text(self) -> str:
        """The configuration file."""
        values: dict[str, object] = {
            "name": self.name,
            "memory": self.memory_mib,
            "vcpus": self.vcpus,
            "kernel": self.kernel,
            "ramdisk": self.ramdisk,
            "extra": self.arguments,
            "on_reboot": self.on_reboot,
            "on_crash": "destroy",
        }
        if self.disks:
            values["disk"] = [disk.line() for disk in self.disks]
        if self.virtio:
            values["virtio"] = list(self.virtio)
        values.update(self.extra)
        # xl's syntax for numbers, strings and lists of strings is also JSON's.
        return "".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items())


DEBIAN_KERNEL = {"kernel": "/lab/debian/vmlinuz", "ramdisk": "/lab/debian/initramfs.gz"}
"""For `GuestConfig(**DEBIAN_KERNEL, ...)`: Debian's own kernel; foreign mode only, and 256 MiB at least."""


@dataclass(frozen=True, slots=True)
class DomainRow:
    """One line of `xl list`; `state` is its letters without the dashes, for example `b` or `r`."""

    name: str
    domid: DomId
    memory_mib: int
    vcpus: int
    state: str
    cpu_s: float


class Guest:
    """A guest that was created. `domid` is that of this life; `wait_rebooted` gives the next one."""

    def __init__(self, dom0: Dom0, name: str, domid: DomId) -> None:
        self._dom0 = dom0
        self.name = name
        self.domid = domid

    def wait_prompt(self, timeout_s: float = BOOT_TIMEOUT_S) -> str:
        """Wait until the guest takes commands; gives all it said before.

        Raises:
            ResourceError: it ended or time is up; the message has its last lines.
        """
        return self.wait_output(PROMPT, timeout_s)

    def wait_output(self, pattern: str, timeout_s: float, start: int = 0) -> str:
        """Wait for a regular expression on the guest's console, from character `start` of all it ever said."""
        answer = self._dom0.channel.request(
            "console_wait",
            timeout_s + REPLY_GRACE_S,
            domid=self.domid,
            pattern=pattern,
            start=start,
            timeout_s=timeout_s,
        )
        text = str(answer["text"])
        if answer["end"] is None:
            why = "ended" if answer["closed"] else f"did not say {pattern!r} within {timeout_s:.0f} s"
            raise ResourceError(f"guest {self.name} {why}; its console ends:\n{text[-2000:]}")
        return text

    def run(self, command: str, timeout_s: float = 120, *, check: bool = True) -> Result:
        """Run a shell command in the guest, one at a time; each has a shell of its own.

        Raises:
            CommandError: it did not end in time (it goes on in the guest), or, with `check`, failed.
            UsageError: the command is too long for a console line.
        """
        line = f"sh -c {shlex.quote(command)} </dev/null"
        if "\n" in command:
            coded = base64.b64encode(command.encode()).decode()
            line = f'sh -c "$(echo {coded} | base64 -d)" </dev/null'
        if len(line.encode()) > LINE_LIMIT_BYTES:
            raise UsageError(f"guest command of {len(line)} characters; a console line takes {LINE_LIMIT_BYTES} bytes")
        answer = self._dom0.channel.request(
            "console_run", timeout_s + REPLY_GRACE_S, domid=self.domid, line=line, timeout_s=timeout_s
        )
        status, output = answer["status"], str(answer["output"])
        if status is None or (check and status != 0):
            raise CommandError(f"guest {self.name}", command, status, output)
        return Result(int(status), output)

    def type(self, text: str) -> None:
        """Type into the console and wait for nothing, for example `reboot -f` and a line end."""
        self._dom0.channel.request("console_write", REPLY_GRACE_S, domid=self.domid, text=text)

    def reboot(self, timeout_s: float = BOOT_TIMEOUT_S) -> Guest:
        """Reboot from inside; gives the guest in its next life, under a new domid, when it takes commands."""
        self.type("reboot -f\n")
        return self.wait_rebooted(timeout_s)

    def wait_rebooted(self, timeout_s: float = BOOT_TIMEOUT_S) -> Guest:
        """Wait for the next life of this guest and its prompt."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            answer = self._dom0.run(f"xl domid {shlex.quote(self.name)}", check=False)
            if answer.status == 0 and int(answer.output) != self.domid:
                guest = Guest(self._dom0, self.name, DomId(int(answer.output)))
                guest.wait_prompt(deadline - time.monotonic())
                return guest
            time.sleep(0.2)
        raise ResourceError(f"guest {self.name} did not come back from its reboot within {timeout_s:.0f} s")

    def destroy(self) -> None:
        """End it at once, as pulling the plug does; returns when Xen and libxl are done with it."""
        self._dom0.run(f"xl destroy {self.domid}", CREATE_TIMEOUT_S)

    def shut_down(self, timeout_s: float = 60) -> None:
        """Power off from inside and wait until the domain is gone."""
        self.type("poweroff -f\n")
        Toolstack(self._dom0).wait_gone(self.domid, timeout_s)

    def log(self) -> str:
        """What xenconsoled logged of this name's console, over all its lives."""
        return self._dom0.read_file(f"/var/log/xen/guest-{self.name}.log").decode(errors="replace")


class Toolstack:
    """dom0's `xl`."""

    def __init__(self, dom0: Dom0) -> None:
        self._dom0 = dom0

    def create(self, config: GuestConfig, *, wait: bool = True, paused: bool = False) -> Guest:
        """Create a guest and, with `wait`, see it take commands.

        A virtio guest that finds no backend stops at its first access to the device: then wait later.

        Raises:
            CommandError: xl refused; its output is in the message.
        """
        path = f"/srv/lab/{config.name}.cfg"
        self._dom0.write_file(path, config.text())
        self._dom0.run(f"xl create {'-p ' if paused else ''}{shlex.quote(path)}", CREATE_TIMEOUT_S)
        domid = DomId(int(self._dom0.run(f"xl domid {shlex.quote(config.name)}").output))
        guest = Guest(self._dom0, config.name, domid)
        if wait and not paused:
            guest.wait_prompt()
        return guest

    def unpause(self, guest: Guest) -> None:
        """Let a guest run that was created paused."""
        self._dom0.run(f"xl unpause {guest.domid}")

    def domains(self) -> list[DomainRow]:
        """All of `xl list`, dom0 first; a dying domain that something still holds shows as `(null)`."""
        return parse_domains(self._dom0.run("xl list").output)

    def wait_gone(self, domid: DomId, timeout_s: float = 60) -> None:
        """Wait until Xen has freed the last of a domain.

        Raises:
            ResourceError: it is still listed; something holds its memory or an event channel.
        """
        deadline = time.monotonic() + timeout_s
        while any(row.domid == domid for row in self.domains()):
            if time.monotonic() > deadline:
                raise ResourceError(f"domain {domid} is still there after {timeout_s:.0f} s: {self.domains()}")
            time.sleep(0.2)

    def wait_only_dom0(self, timeout_s: float = 60) -> None:
        """Wait until no domain but dom0 is listed, dying ones included.

        Raises:
            ResourceError: one is still listed; something holds its memory or an event channel.
        """
        for row in self.domains():
            if row.domid != 0:
                self.wait_gone(row.domid, timeout_s)

    def make_disk(self, path: str, size_mib: int) -> None:
        """A sparse disk image of zeros in dom0."""
        quoted = shlex.quote(path)
        self._dom0.run(f"mkdir -p $(dirname {quoted}); rm -f {quoted}; truncate -s {size_mib}M {quoted}")


def parse_domains(listing: str) -> list[DomainRow]:
    """The lines of `xl list` below its heading."""
    rows = []
    for line in listing.splitlines()[1:]:
        name, domid, memory, vcpus, state, cpu_s = line.split()
        rows.append(
            DomainRow(name, DomId(int(domid)), int(memory), int(vcpus), state.replace("-", ""), float(cpu_s))
        )
    return rows
