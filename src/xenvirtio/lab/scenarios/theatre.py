"""Plays scenarios one after the other: on one machine, on a new one after a play that spoilt it, or on their own."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from xenvirtio.errors import XenvirtioError
from xenvirtio.lab.machine import Machine
from xenvirtio.lab.options import MachineOptions
from xenvirtio.lab.scenarios.machine_stage import MachineStage
from xenvirtio.lab.scenarios.registry import AnyScenario, MachineScenario, Scenario, play, play_on_own
from xenvirtio.lab.scenarios.stage import Stage
from xenvirtio.lab.toolstack import MemoryMode, Toolstack

Play = tuple[AnyScenario, MemoryMode]


class SharedMachine:
    """The machine for all scenarios without one of their own: there when first asked for, until `release`.

    `obtain` gives a machine and whether it is to be stopped at the end; `boot` a fresh one.
    """

    def __init__(self, obtain: Callable[[], tuple[Machine, bool]], boot: Callable[[], Machine]) -> None:
        self._obtain = obtain
        self._boot = boot
        self._machine: Machine | None = None
        self._ours = False
        self.boots = 0

    def get(self) -> Machine:
        """The machine, as the last play left it."""
        if self._machine is None:
            self._machine, self._ours = self._obtain()
            self.boots += self._ours
        return self._machine

    def renew(self) -> None:
        """Boot it again."""
        self.get().stop()
        self._machine, self.boots = self._boot(), self.boots + 1

    def release(self) -> None:
        """Stop it if it is ours, else let go of it."""
        if self._machine is not None:
            self._machine.stop() if self._ours else self._machine.close()
        self._machine = None


def play_all(
    plays: Sequence[Play],
    shared: SharedMachine,
    start: Callable[[MachineOptions, str], Machine],
    progress: Callable[[str], None],
) -> dict[str, Any]:
    """Play all and report: `ok`, `seconds`, `boots` and `scenarios`, one report of `registry.play` each.

    Those with machines of their own come last, when the shared one is stopped: the emulated processors of two
    would share what is there. `start` starts a machine with these options and name.
    """
    started = time.monotonic()
    reports: list[dict[str, Any]] = []
    own = 0

    def start_own(options: MachineOptions, name: str) -> Machine:
        nonlocal own
        own += 1
        return start(options, name)

    try:
        for number, (scenario, mode) in enumerate(sorted(plays, key=_has_machine), 1):
            if reports and not reports[-1]["clean"] and isinstance(scenario, Scenario):
                progress("the machine is not as it was; booting it again")
                shared.renew()
            progress(f"[{number}/{len(plays)}] {scenario.name} ({mode.name.lower()}): {scenario.description}")
            if isinstance(scenario, MachineScenario):
                shared.release()
                report = play_on_own(scenario, MachineStage(scenario.name, mode, start_own))
            else:
                report = _play(scenario, mode, shared.get())
            reports.append(report)
            progress(f"      {'ok' if report['ok'] else 'FAILED'} in {report['seconds']} s")
            if not report["ok"]:
                progress(_failure(report))
    finally:
        shared.release()
    return {
        "ok": bool(reports) and all(report["ok"] for report in reports),
        "seconds": round(time.monotonic() - started, 1),
        "boots": shared.boots + own,
        "scenarios": reports,
    }


def _has_machine(one: Play) -> bool:
    return isinstance(one[0], MachineScenario)


def _play(scenario: Scenario, mode: MemoryMode, machine: Machine) -> dict[str, Any]:
    try:
        dom0 = machine.dom0()
    except XenvirtioError as error:
        return {"name": scenario.name, "mode": mode.name.lower(), "ok": False, "error": str(error), "clean": False,
                "seconds": 0.0}
    return play(scenario, Stage(machine, dom0, Toolstack(dom0), mode))


def _failure(report: dict[str, Any]) -> str:
    """A failed play for people: the error, then the last lines of every log."""
    parts = [f"      {report['error']}"]
    for name, text in report.get("evidence", {}).items():
        parts.append(f"--- {name}\n{text.rstrip()}")
    return "\n".join(parts)
