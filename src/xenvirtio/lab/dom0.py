"""dom0 as a scenario sees it: commands, files, background programs."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path

from xenvirtio.errors import ResourceError
from xenvirtio.lab.channel import REPLY_GRACE_S, AgentChannel

CHUNK_BYTES = 256 << 10


@dataclass(frozen=True, slots=True)
class Result:
    """How a command ended: its exit status and what it printed, both streams together."""

    status: int
    output: str


class CommandError(ResourceError):
    """A command in dom0 or in a guest failed or did not end in time (`status` None)."""

    def __init__(self, where: str, command: str, status: int | None, output: str) -> None:
        self.where = where
        self.command = command
        self.status = status
        self.output = output
        how = "did not end in time" if status is None else f"ended with {status}"
        super().__init__(f"{where}: {command!r} {how}: {output.strip()[-2000:]}")


class BackgroundProgram:
    """A program that goes on in dom0 while the scenario does other things."""

    def __init__(self, dom0: Dom0, pid: int, log: str) -> None:
        self._dom0 = dom0
        self.pid = pid
        self.log = log

    def signal(self, name: str) -> None:
        """Send it a signal, for example `KILL`; no error when it is gone."""
        self._dom0.run(f"kill -{name} {self.pid}", check=False)

    def wait(self, timeout_s: float) -> int | None:
        """Its exit status, the negated signal number that ended it, or None when it still runs after `timeout_s`."""
        status = self._dom0.channel.request("wait", timeout_s + REPLY_GRACE_S, pid=self.pid, timeout_s=timeout_s)
        return None if status["status"] is None else int(status["status"])

    def is_running(self) -> bool:
        """Whether it has not ended yet."""
        return self.wait(0) is None

    def output(self) -> str:
        """All it has printed so far."""
        return self._dom0.read_file(self.log).decode(errors="replace")


class Dom0:
    """dom0 of a running lab machine, reached through its agent. All methods may be called from any thread."""

    def __init__(self, channel: AgentChannel) -> None:
        self.channel = channel

    def run(self, command: str, timeout_s: float = 120, *, check: bool = True, stdin: str = "") -> Result:
        """Run a shell command as root in /root.

        Raises:
            CommandError: it did not end within `timeout_s` (it is killed then), or, with `check`, failed.
        """
        answer = self.channel.request(
            "run", timeout_s + REPLY_GRACE_S, command=command, timeout_s=timeout_s, input=stdin
        )
        status, output = answer["status"], str(answer["output"])
        if status is None or (check and status != 0):
            raise CommandError("dom0", command, status, output)
        return Result(int(status), output)

    def spawn(self, command: str, log: str) -> BackgroundProgram:
        """Start a program in the background, its output appended to the file `log` in dom0."""
        answer = self.channel.request("spawn", REPLY_GRACE_S, command=f"exec {command}", log=log)
        return BackgroundProgram(self, int(answer["pid"]), log)

    def write_file(self, path: str, data: bytes | str, mode: int = 0o644) -> None:
        """Put a file into dom0, replacing one that is there; folders are made as needed."""
        rest = data.encode() if isinstance(data, str) else data
        append = False
        while rest or not append:
            part, rest = rest[:CHUNK_BYTES], rest[CHUNK_BYTES:]
            coded = base64.b64encode(part).decode()
            self.channel.request("put", REPLY_GRACE_S, path=path, data=coded, append=append, mode=mode)
            append = True

    def read_file(self, path: str) -> bytes:
        """All of a file in dom0."""
        parts: list[bytes] = []
        offset = 0
        while True:
            answer = self.channel.request("get", REPLY_GRACE_S, path=path, offset=offset)
            part = base64.b64decode(answer["data"])
            if not part:
                return b"".join(parts)
            parts.append(part)
            offset += len(part)

    def copy_in(self, source: Path, path: str, mode: int = 0o644) -> None:
        """Put a file of the host into dom0."""
        self.write_file(path, source.read_bytes(), mode)
