"""`xenvirtio serve` in dom0 as a scenario drives it: its configuration, its log, what it holds, its end."""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from xenvirtio.errors import ResourceError
from xenvirtio.lab.dom0 import BackgroundProgram, Dom0

START_TIMEOUT_S = 120.0
"""Python itself takes two seconds to start in the emulated dom0, several times that beside other work."""

STOP_TIMEOUT_S = 60.0
SETTLE_TIMEOUT_S = 60.0
POLL_S = 0.1
LINES_SHOWN = 15
TICKS_PER_S = 100
"""USER_HZ: what /proc counts processor time in, on every architecture we know."""

FRAMES = "/dev/xen/privcmd"
"""The node through which guest frames and IOREQ pages are mapped."""

HEADER = """\
[daemon]
state_dir = "{folder}/state"
"""


@dataclass(frozen=True, slots=True)
class Holdings:
    """What a process holds, as /proc shows it: counts by kind, so that two moments can be compared."""

    descriptors: Counter[str]
    mappings: Counter[str]
    threads: int

    def difference(self, other: Holdings, *, but_chunks: bool = False) -> str:
        """What `other` has more (+) or less (-) than this; empty when the same.

        `but_chunks` leaves out mapped guest frames, of which a daemon keeps as many as a living guest has used.
        """
        parts = []
        for what, before, after in (
            ("fd", self.descriptors, other.descriptors),
            ("map", self.mappings, other.mappings),
            ("thread", Counter(threads=self.threads), Counter(threads=other.threads)),
        ):
            for name in sorted(before | after):
                if before[name] != after[name] and not (but_chunks and (what, name) == ("map", FRAMES)):
                    parts.append(f"{what} {name} {after[name] - before[name]:+d}")
        return ", ".join(parts)


@dataclass(frozen=True, slots=True)
class ProcessTime:
    """Processor seconds of one process so far."""

    user_s: float
    system_s: float


class Backend:
    """One state folder and the processes that serve from it, one after the other."""

    def __init__(self, dom0: Dom0, name: str, devices: str = "") -> None:
        self._dom0 = dom0
        self.name = name
        self.folder = f"/run/lab/{name}"
        self.log_path = f"{self.folder}/log"
        self.configuration_path = f"{self.folder}/backends.toml"
        self._lives = 0
        self._program: BackgroundProgram | None = None
        dom0.run(f"rm -rf {self.folder}; mkdir -p {self.folder}")
        self.configure(devices)

    def configure(self, devices: str) -> None:
        """Write backends.toml: our `[daemon]` table and `devices`, the text of `[[device]]` tables."""
        self._dom0.write_file(self.configuration_path, HEADER.format(folder=self.folder) + devices)

    @property
    def pid(self) -> int:
        """Of the process that runs now, or ran last."""
        assert self._program is not None, "not started"
        return self._program.pid

    def start(self) -> None:
        """Start a process and see it ready; the log goes on in the same file.

        Raises:
            ResourceError: it ended, or did not get ready in time; the message has the log's last lines.
        """
        self._lives += 1
        command = f"xenvirtio serve --log-format json {self.configuration_path}"
        self._program = self._dom0.spawn(command, self.log_path)
        lives = self._lives
        self.wait_for(lambda records: sum(r["message"] == "ready" for r in records) >= lives, "ready", START_TIMEOUT_S)

    def kill(self) -> None:
        """SIGKILL, and see it gone: no process of ours answers the guests any more."""
        assert self._program is not None
        self._program.signal("KILL")
        status = self._program.wait(STOP_TIMEOUT_S)
        assert status == -9, f"the daemon was to be killed but ended with {status}"

    def stop(self) -> None:
        """SIGTERM, and see it end as it should: exit status 0, nothing in the log that is no record.

        Raises:
            AssertionError: it ended otherwise, or logged an error or something unformatted (a traceback).
        """
        assert self._program is not None
        self._program.signal("TERM")
        status = self._program.wait(STOP_TIMEOUT_S)
        assert status == 0, f"the daemon ended with {status} after SIGTERM; its log ends:\n{self.tail()}"
        trouble = trouble_in(self.log_text())
        assert not trouble, "the daemon's log has:\n" + "\n".join(trouble)

    def wait_ended(self) -> bool:
        """Wait for its end, however it comes; false when it did not come in time."""
        return self._program is None or self._program.wait(STOP_TIMEOUT_S) is not None

    def is_running(self) -> bool:
        return self._program is not None and self._program.is_running()

    def signal(self, name: str) -> None:
        assert self._program is not None
        self._program.signal(name)

    def log_text(self) -> str:
        return self._dom0.read_file(self.log_path).decode(errors="replace")

    def tail(self) -> str:
        return "\n".join(self.log_text().splitlines()[-LINES_SHOWN:])

    def records(self) -> list[dict[str, Any]]:
        return parse_records(self.log_text())

    def warnings(self) -> list[str]:
        """Messages of level warning and above."""
        return [str(r["message"]) for r in self.records() if r["level"] not in ("debug", "info")]

    def wait_for(self, condition: Callable[[list[dict[str, Any]]], bool], what: str, timeout_s: float) -> None:
        """Wait until the log's records fulfil `condition`.

        Raises:
            ResourceError: time is up, or the process ended.
        """
        deadline = time.monotonic() + timeout_s
        while not condition(self.records()):
            if not self.is_running():
                raise ResourceError(f"the daemon ended while waiting for: {what}; its log ends:\n{self.tail()}")
            if time.monotonic() > deadline:
                raise ResourceError(f"no {what} within {timeout_s:.0f} s; the daemon's log ends:\n{self.tail()}")
            time.sleep(POLL_S)

    def wait_warning(self, pattern: str, timeout_s: float = 60) -> str:
        """Wait for a warning that matches and give its message."""
        expression = re.compile(pattern)
        self.wait_for(lambda _: any(expression.search(w) for w in self.warnings()), f"warning {pattern!r}", timeout_s)
        return next(w for w in self.warnings() if expression.search(w))

    def counters(self) -> dict[str, Any]:
        """What each guest has cost this process so far, by the daemon's own count (SIGUSR1)."""

        def count(records: list[dict[str, Any]]) -> int:
            return sum(r["message"] == "counters" for r in records)

        before = count(self.records())
        self.signal("USR1")
        self.wait_for(lambda records: count(records) > before, "counters", SETTLE_TIMEOUT_S)
        guests: dict[str, Any] = [r for r in self.records() if r["message"] == "counters"][-1]["guests"]
        return guests

    def requests_of(self, guest: str) -> int:
        """Requests of all devices of a guest, since this process took it."""
        devices = self.counters().get(guest, {}).get("devices", {})
        return sum(int(device["requests"]) for device in devices.values())

    def wait_progress(self, guest: str, requests: int, timeout_s: float = SETTLE_TIMEOUT_S) -> None:
        """Wait until this process has served that many requests of a guest."""
        deadline = time.monotonic() + timeout_s
        while (served := self.requests_of(guest)) < requests:
            if time.monotonic() > deadline:
                raise ResourceError(f"guest {guest}: {served} requests within {timeout_s:.0f} s, {requests} expected")

    def holdings(self) -> Holdings:
        """What the process holds now."""
        pid = self.pid
        answer = self._dom0.run(
            f"for fd in /proc/{pid}/fd/*; do readlink $fd; done; echo ===; cat /proc/{pid}/maps; echo ===; "
            f"ls /proc/{pid}/task | wc -l"
        )
        descriptors, mappings, threads = answer.output.split("===\n")
        return Holdings(parse_descriptors(descriptors), parse_mappings(mappings), int(threads))

    def wait_holdings(
        self, expected: Holdings, timeout_s: float = SETTLE_TIMEOUT_S, *, but_chunks: bool = False
    ) -> None:
        """Wait until it holds exactly this, but for mapped chunks of living guests' memory with `but_chunks`.

        Raises:
            AssertionError: it still holds something else; the message says what.
        """
        deadline = time.monotonic() + timeout_s
        while difference := expected.difference(self.holdings(), but_chunks=but_chunks):
            assert time.monotonic() < deadline, f"the daemon holds other things than before: {difference}"
            time.sleep(POLL_S)

    def time(self) -> ProcessTime:
        """Processor time so far."""
        return parse_stat(self._dom0.run(f"cat /proc/{self.pid}/stat").output)


def parse_records(log: str) -> list[dict[str, Any]]:
    """The log's JSON records; lines that are none are left out (see `trouble_in`)."""
    found = []
    for line in log.splitlines():
        record = _record(line)
        if record is not None:
            found.append(record)
    return found


def _record(line: str) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and "message" in record and "level" in record else None


def trouble_in(log: str) -> list[str]:
    """Lines that a healthy daemon never writes: errors, and what is no record (tracebacks, messages of C code).

    A line cut off by a kill -9 is excused: it is the beginning of a record.
    """
    trouble = []
    for line in log.splitlines():
        record = _record(line)
        if record is None:
            if line.strip() and not line.startswith('{"time"'):
                trouble.append(line)
        elif record["level"] in ("error", "critical") or "traceback" in record:
            trouble.append(line)
    return trouble


def parse_descriptors(listing: str) -> Counter[str]:
    """Count descriptor targets, one a line; sockets and pipes without their numbers."""
    return Counter(re.sub(r":\[\d+\]$", "", line) for line in listing.splitlines() if line)


def parse_mappings(maps: str) -> Counter[str]:
    """Count /proc/PID/maps lines of device nodes and state files; code, heaps and stacks come and go as they like."""
    found: Counter[str] = Counter()
    for line in maps.splitlines():
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and (fields[5].startswith("/dev/") or ".state" in fields[5] or "anon_inode" in fields[5]):
            found[re.sub(r"guest-\d+", "guest-N", fields[5])] += 1
    return found


def parse_stat(stat: str) -> ProcessTime:
    """User and system time out of /proc/PID/stat, whose second field may hold spaces and parentheses."""
    fields = stat.rpartition(")")[2].split()
    return ProcessTime(int(fields[11]) / TICKS_PER_S, int(fields[12]) / TICKS_PER_S)
