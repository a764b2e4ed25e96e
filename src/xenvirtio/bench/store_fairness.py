"""How much a hostile domain slows another one down.

Domain 1 is the victim, measured alone and beside attackers, which are processes and domains of their own. They exist
all the time, each scene with a server of its own, and are stopped and continued by signals, so that all scenes can be
measured in turn. The machine's processors are shared too: the scene with busy processes, which never speak to XenStore,
says what that alone costs, and `server_us` is free of it: processor time that the server uses, for whomever, until the
victim has its answer.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from xenvirtio.bench.store_attacker import ATTACKS, VICTIM_NODE
from xenvirtio.bench.store_cases import CASES, Case, Sample, measure
from xenvirtio.bench.store_client import request
from xenvirtio.bench.store_server import ServerProcess
from xenvirtio.errors import ResourceError
from xenvirtio.xenstore.wire import MessageType, join_strings

ATTACKER = "xenvirtio.bench.store_attacker"
ALONE = "alone"
MEASURED = ("read", "write", "transaction (read, write)")
START_TIMEOUT_S = 30.0

Progress = Callable[[str], None]


class Attackers:
    """The processes of one scene."""

    def __init__(self, attack: str, descriptors: list[int]) -> None:
        self._processes = [
            subprocess.Popen([sys.executable, "-m", ATTACKER, attack, str(descriptor)], pass_fds=[descriptor])
            for descriptor in descriptors
        ]

    def wait_ready(self) -> None:
        """Wait until all have stopped themselves."""
        deadline = time.monotonic() + START_TIMEOUT_S
        for process in self._processes:
            while _state(process.pid) != "T":
                if process.poll() is not None or time.monotonic() > deadline:
                    raise ResourceError("an attacker did not start")
                time.sleep(0.01)

    @contextmanager
    def loose(self) -> Iterator[None]:
        """Let them do their worst meanwhile.

        Raises:
            ResourceError: one has ended, so that nothing was measured.
        """
        self._signal(signal.SIGCONT)
        try:
            yield
        finally:
            self._signal(signal.SIGSTOP)
        if any(process.poll() is not None for process in self._processes):
            raise ResourceError("an attacker has ended by itself")

    def end(self) -> None:
        self._signal(signal.SIGKILL)
        for process in self._processes:
            process.wait()

    def _signal(self, number: int) -> None:
        for process in self._processes:
            if process.poll() is None:
                os.kill(process.pid, number)


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


class Scene:
    """A server of its own with the victim and the attackers, so that nothing they leave behind meets another scene."""

    def __init__(self, stack: ExitStack, attack: str | None, attackers: int) -> None:
        """`attack` None: the victim is alone."""
        numbers = range(2, 2 + (attackers if attack is not None else 0))
        self._server = stack.enter_context(ServerProcess(1 + len(numbers)))
        _prepare(self._server, 1 + len(numbers))
        self._victim = self._server.open(1)
        self._attackers = Attackers(attack or "", [self._server.descriptor(number) for number in numbers])
        stack.callback(self._attackers.end)
        self._attackers.wait_ready()

    def measure(self, case: Case, seconds: float) -> Sample:
        """Measure an operation of the victim."""
        with self._attackers.loose():
            return measure(case, self._victim, b"/local/domain/1", self._server.pid, seconds)


def measure_fairness(attackers: int, rounds: int, seconds: float, progress: Progress) -> dict[str, Any]:
    """Measure the victim alone and beside so many attackers of each kind; a report ready for JSON."""
    found: dict[tuple[str, str], list[Sample]] = {(scene, case): [] for scene in (ALONE, *ATTACKS) for case in MEASURED}
    with ExitStack() as stack:
        scenes = {ALONE: Scene(stack, None, 0)} | {name: Scene(stack, name, attackers) for name in ATTACKS}
        for round_ in range(rounds):
            for name, scene in scenes.items():
                for case in CASES:
                    if case.name in MEASURED:
                        found[name, case.name].append(scene.measure(case, seconds))
            progress(f"round {round_ + 1} of {rounds}")
    rows = []
    for (beside, case_name), samples in found.items():
        row: dict[str, Any] = {"beside": beside, "operation": case_name}
        for key in ("wall_us", "server_us"):
            values = median(getattr(sample, key) for sample in samples)
            alone = median(getattr(sample, key) for sample in found[ALONE, case_name])
            row[key] = round(values, 1)
            row[key.replace("us", "ratio")] = round(values / alone, 2)
        rows.append(row)
    return {"ok": True, "attackers": attackers, "rounds": rounds, "seconds": seconds, "rows": rows}


def _prepare(server: ServerProcess, domains: int) -> None:
    for number in range(1, domains + 1):
        home = b"/local/domain/%d" % number
        server.control.ask(request(MessageType.MKDIR, home + b"\0"))
        server.control.ask(request(MessageType.SET_PERMS, join_strings((home, b"n%d" % number))))
    server.control.ask(request(MessageType.WRITE, VICTIM_NODE + b"\x001"))
    server.control.ask(request(MessageType.SET_PERMS, join_strings((VICTIM_NODE, b"r1"))))


def fairness_table(report: dict[str, Any]) -> str:
    """The report for people."""
    rows = report["rows"]
    cases = list(dict.fromkeys(row["operation"] for row in rows))
    found = {(row["beside"], row["operation"]): row for row in rows}
    lines = [f"{'beside ' + str(report['attackers']) + ' of':<28}" + "".join(f"{case:>28}" for case in cases)]
    lines.append(" " * 28 + f"{'us':>8}{'x':>6}{'server':>8}{'x':>6}" * len(cases))
    for scene in dict.fromkeys(row["beside"] for row in rows):
        cells = [found[scene, case] for case in cases]
        line = f"{scene:<28}"
        for cell in cells:
            line += f"{cell['wall_us']:>8.0f}{cell['wall_ratio']:>6.2f}"
            line += f"{cell['server_us']:>8.0f}{cell['server_ratio']:>6.2f}"
        lines.append(line)
    return "\n".join(lines)
