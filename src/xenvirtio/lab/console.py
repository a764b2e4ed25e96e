"""The machine's serial console: Xen's and dom0's messages, and a root shell when the agent does not answer."""

from __future__ import annotations

import os
import re
import select
import socket
import sys
import termios
import time
import tty
from pathlib import Path

import pexpect
import pexpect.fdpexpect

from xenvirtio.errors import ResourceError

PROMPT = "dom0# "
LEAVE = b"\x1d"
"""Ctrl-], as in telnet and `xl console`."""

SWITCH = b"\x01\x01\x01"
"""What Xen's console takes as "the next domain, please" (xen/drivers/char/console.c)."""

SWITCH_TIMEOUT_S = 20.0
PIECE_BYTES = 16
PIECE_PAUSE_S = 0.2
"""How much is typed at once into an emulated pl011, and how long its guest gets to take it."""

_INPUT = re.compile(rb"\*\*\* Serial input to (\S+) \(type ")

TROUBLE = re.compile(
    r"^(?!\(XEN\) DOM\d+: ).*(?:Kernel panic|Panic on CPU|Xen BUG at|Unable to mount root|Internal error: Oops)"
)
"""Xen or dom0 is lost. What a dom0less domain prints comes as `DOM1: ...` and says nothing about the machine."""


class SerialConsole:
    """A conversation with the shell on the serial console, by expecting its prompt."""

    def __init__(self, path: Path) -> None:
        self._socket = _connect(path)
        self._spawn = pexpect.fdpexpect.fdspawn(self._socket.fileno(), encoding="utf-8", codec_errors="replace")
        self._count = 0

    def run(self, command: str, timeout_s: float = 60) -> str:
        """What a command prints, its two streams mixed with whatever Xen says meanwhile.

        Raises:
            ResourceError: no shell answered in time.
        """
        self._count += 1
        mark = f"{os.getpid()}-{self._count}"
        self._spawn.sendline(f'echo "XV""BEGIN {mark}"; {command}; echo "XV""END {mark}"')
        try:
            self._spawn.expect(rf"XVBEGIN {mark}\r*\n(.*?)XVEND {mark}", timeout=timeout_s)
        except (pexpect.TIMEOUT, pexpect.EOF) as error:
            raise ResourceError(f"serial console: no answer to {command!r} within {timeout_s:.0f} s") from error
        return str(self._spawn.match.group(1)).replace("\r", "")

    def close(self) -> None:
        """Leave the console to the next one."""
        self._socket.close()


def attach_terminal(path: Path, domid: int = 0) -> None:
    """Connect this terminal to the serial console until Ctrl-] is typed or the machine ends.

    Xen gives what is typed to one domain at a time: to `domid` meanwhile, to dom0 again afterwards.

    Raises:
        ResourceError: Xen does not give its input to that domain.
    """
    connection = _connect(path)
    terminal = sys.stdin.fileno()
    before = termios.tcgetattr(terminal) if os.isatty(terminal) else None
    try:
        if domid:
            switch_input(connection, domid)
        if before is not None:
            tty.setraw(terminal)
        connection.sendall(b"\n")
        _pump(connection, terminal, paced=bool(domid))
    finally:
        if before is not None:
            termios.tcsetattr(terminal, termios.TCSADRAIN, before)
        if domid:
            try:
                switch_input(connection, 0)
            except (ResourceError, OSError):
                pass  # the machine is gone, or the next one switches
        connection.close()


def switch_input(connection: socket.socket, domid: int) -> None:
    """Have Xen give what is typed to a domain: three times Ctrl-a is the next one, Xen itself among them.

    Raises:
        ResourceError: a whole round did not bring up the domain, or Xen says nothing.
    """
    connection.settimeout(SWITCH_TIMEOUT_S)
    said = b""
    seen: list[str] = []
    try:
        while True:
            connection.sendall(SWITCH)
            while not (match := _INPUT.search(said)):
                part = connection.recv(4096)
                if not part:
                    raise ResourceError("serial console: the machine ended")
                said += part
            said = said[match.end() :]
            name = match[1].decode()
            if name == f"DOM{domid}":
                return
            if name in seen:
                raise ResourceError(f"Xen gives its input to {', '.join(seen)}, not to domain {domid}")
            seen.append(name)
    except TimeoutError:
        raise ResourceError(f"Xen did not say who gets its input within {SWITCH_TIMEOUT_S:.0f} s") from None
    finally:
        connection.settimeout(None)


def _pump(connection: socket.socket, terminal: int, *, paced: bool) -> None:
    """Carry bytes both ways until somebody leaves. `paced`: an emulated pl011 has room for 32 and drops the rest."""
    while True:
        ready, _, _ = select.select([terminal, connection.fileno()], [], [])
        if connection.fileno() in ready:
            data = connection.recv(4096)
            if not data:
                return
            os.write(sys.stdout.fileno(), data)
        if terminal in ready:
            typed = os.read(terminal, 4096)
            if not typed or LEAVE in typed:
                return
            while typed:
                part, typed = (typed[:PIECE_BYTES], typed[PIECE_BYTES:]) if paced else (typed, b"")
                connection.sendall(part)
                if typed:
                    time.sleep(PIECE_PAUSE_S)


def trouble_in(log: Path) -> str | None:
    """The line of the serial log that says the machine is lost, or None."""
    if not log.exists():
        return None
    for line in log.read_text(errors="replace").splitlines():
        if TROUBLE.search(line):
            return line.strip()
    return None


def _connect(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.connect(str(path))
    except OSError as error:
        connection.close()
        raise ResourceError(f"serial console {path}: {error.strerror}") from error
    return connection
