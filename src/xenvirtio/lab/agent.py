"""The lab's hand inside dom0: runs commands, moves files and talks to guests' consoles for the host.

Runs as a plain script in dom0 and imports nothing of the package, so that a broken package can still be looked at.
It speaks over a virtio console port, one JSON object a line. Lines and not counted frames, because a host program may
die in the middle of one: whatever is no whole object is dropped and the next line is good again.
Request `{"id": 7, "op": "run", ...}`; reply `{"id": 7, "ok": true, "result": {...}}` or
`{"id": 7, "ok": false, "error": "..."}`. Every request runs in a thread of its own, replies come in any order.
"""

from __future__ import annotations

import base64
import codecs
import json
import os
import re
import signal
import subprocess
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

PORT_NAME = "xenvirtio.agent"
LINE_LIMIT_BYTES = 16 << 20
"""A longer line is not ours and is dropped; without a bound a broken stream would fill dom0's memory."""

CHUNK_BYTES = 64 << 10


class GuestConsole:
    """One guest's console: all it ever said, and a way to type.

    The pty is read all the time; xenconsoled would otherwise stop reading the guest's ring.
    """

    def __init__(self, domid: int) -> None:
        self.domid = domid
        self.text = ""
        self.closed = False
        self.changed = threading.Condition()
        self.typing = threading.Lock()
        self._fd = os.open(_console_path(domid), os.O_RDWR | os.O_NOCTTY)
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        while True:
            try:
                data = os.read(self._fd, 4096)
            except OSError:
                data = b""
            with self.changed:
                if not data:
                    self.closed = True
                else:
                    self.text += decoder.decode(data)
                self.changed.notify_all()
            if not data:
                os.close(self._fd)
                return

    def write(self, text: str) -> None:
        data = text.encode()
        while data:
            data = data[os.write(self._fd, data[:256]) :]

    def wait(self, pattern: str, start: int, timeout_s: float) -> re.Match[str] | None:
        """The first match at or after `start`, or None when time is up or the guest is gone."""
        expression = re.compile(pattern)
        deadline = time.monotonic() + timeout_s
        with self.changed:
            while True:
                match = expression.search(self.text, start)
                left = deadline - time.monotonic()
                if match is not None or self.closed or left <= 0:
                    return match
                self.changed.wait(left)


class Agent:
    """Answers requests that come as lines from `read`, which gives some bytes, none when nobody is connected."""

    def __init__(self, read: Callable[[], bytes], write: Callable[[bytes], None]) -> None:
        self._read = read
        self._write = write
        self._write_lock = threading.Lock()
        self._children: dict[int, subprocess.Popen[bytes]] = {}
        self._consoles: dict[int, GuestConsole] = {}
        self._console_lock = threading.Lock()
        self._marker = 0

    def serve(self) -> None:
        """Read requests for ever."""
        rest = b""
        while True:
            part = self._read()
            if not part or len(rest) > LINE_LIMIT_BYTES:
                rest = b""  # nobody is connected: what came before the cut is void
                continue
            *lines, rest = (rest + part).split(b"\n")
            for line in lines:
                try:
                    request = json.loads(line)
                except ValueError:
                    continue
                threading.Thread(target=self._answer, args=(request,), daemon=True).start()

    def _answer(self, request: dict[str, Any]) -> None:
        ident = request.pop("id")
        try:
            operation = getattr(self, "op_" + request.pop("op"))
            reply = {"id": ident, "ok": True, "result": operation(**request)}
        except Exception as error:  # whatever goes wrong belongs to whoever asked
            message = f"{type(error).__name__}: {error}"
            reply = {"id": ident, "ok": False, "error": message, "trace": traceback.format_exc()}
        data = json.dumps(reply).encode()
        with self._write_lock:
            self._write(b"\n" + data + b"\n")

    def op_ping(self) -> dict[str, Any]:
        """That the agent runs; its process id tells a restarted one."""
        return {"pid": os.getpid()}

    def op_run(self, command: str, timeout_s: float, input: str = "") -> dict[str, Any]:
        """Run a shell command; `status` is None when time was up and it was killed with all its children."""
        child = subprocess.Popen(
            ["/bin/sh", "-c", command],
            cwd="/root",
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            output, _ = child.communicate(input.encode(), timeout_s)
            status: int | None = child.returncode
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            output, _ = child.communicate()
            status = None
        return {"status": status, "output": output.decode(errors="replace")}

    def op_spawn(self, command: str, log: str) -> dict[str, Any]:
        """Start a command that goes on by itself, its output in a file; `exec` makes the pid the program's own."""
        with open(log, "ab") as output:
            child = subprocess.Popen(
                ["/bin/sh", "-c", command],
                cwd="/root",
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._children[child.pid] = child
        return {"pid": child.pid}

    def op_wait(self, pid: int, timeout_s: float) -> dict[str, Any]:
        """The status of a spawned command (negative: the signal that ended it), None while it runs."""
        try:
            return {"status": self._children[pid].wait(timeout_s)}
        except subprocess.TimeoutExpired:
            return {"status": None}

    def op_put(self, path: str, data: str, append: bool, mode: int) -> dict[str, Any]:
        """Write (a part of) a file."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with open(path, "ab" if append else "wb") as file:
            file.write(base64.b64decode(data))
        os.chmod(path, mode)
        return {}

    def op_get(self, path: str, offset: int) -> dict[str, Any]:
        """Read a part of a file; empty data means its end."""
        with open(path, "rb") as file:
            file.seek(offset)
            return {"data": base64.b64encode(file.read(CHUNK_BYTES)).decode()}

    def op_console_wait(self, domid: int, pattern: str, start: int, timeout_s: float) -> dict[str, Any]:
        """Wait for a regular expression in what a guest says; `end` is None when it did not come."""
        console = self._console(domid)
        match = console.wait(pattern, start, timeout_s)
        with console.changed:
            return {
                "end": None if match is None else match.end(),
                "text": console.text[start : match.end() if match else None],
                "closed": console.closed,
            }

    def op_console_write(self, domid: int, text: str) -> dict[str, Any]:
        """Type into a guest's console."""
        console = self._console(domid)
        with console.typing:
            console.write(text)
        return {}

    def op_console_run(self, domid: int, line: str, timeout_s: float) -> dict[str, Any]:
        """Run one line in the shell on a guest's console; `status` is None when time was up or the guest went away."""
        console = self._console(domid)
        with console.typing:
            self._marker += 1
            ident = f"{os.getpid()}-{self._marker}"
            with console.changed:
                start = len(console.text)
            # The quotes keep the echo of what is typed from looking like the markers themselves.
            console.write(f'echo "XV""BEGIN {ident}"; {line}; echo "XV""END {ident} $?"\n')
            match = console.wait(rf"XVBEGIN {ident}\r?\n((?s:.*?))XVEND {ident} (\d+)\r?\n", start, timeout_s)
            with console.changed:
                if match is None:
                    return {"status": None, "output": console.text[start:], "closed": console.closed}
            return {"status": int(match[2]), "output": match[1].replace("\r\n", "\n"), "closed": False}

    def _console(self, domid: int) -> GuestConsole:
        with self._console_lock:
            if domid not in self._consoles:
                self._consoles[domid] = GuestConsole(domid)
            return self._consoles[domid]


def _console_path(domid: int) -> str:
    """The pty of a guest's console; xenconsoled announces it shortly after the guest's creation."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        done = subprocess.run(
            ["xenstore-read", f"/local/domain/{domid}/console/tty"], capture_output=True, text=True, check=False
        )
        if done.returncode == 0 and done.stdout.startswith("/dev/"):
            return done.stdout.strip()
        time.sleep(0.05)
    raise TimeoutError(f"domain {domid} has no console/tty in XenStore")


def _find_port() -> str:
    for folder in Path("/sys/class/virtio-ports").glob("*"):
        name = folder / "name"
        if name.exists() and name.read_text().strip() == PORT_NAME:
            return f"/dev/{folder.name}"
    raise FileNotFoundError(f"no virtio console port named {PORT_NAME}")


def main() -> None:
    """Serve the port until dom0 ends."""
    port = os.open(_find_port(), os.O_RDWR)

    def read() -> bytes:
        part = os.read(port, CHUNK_BYTES)
        if not part:
            # Nobody is connected on the host. The port's poll says "hung up" at once until somebody is, so there
            # is nothing to wait for: look again now and then.
            time.sleep(0.05)
        return part

    def write(data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(port, view[:CHUNK_BYTES]) :]

    Agent(read, write).serve()


if __name__ == "__main__":
    main()
