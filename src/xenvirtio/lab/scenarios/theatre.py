"""Plays scenarios one after the other on one machine, and on a new one after a play that spoilt it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from xenvirtio.errors import XenvirtioError
from xenvirtio.lab.machine import Machine
from xenvirtio.lab.scenarios.registry import Scenario, play
from xenvirtio.lab.scenarios.stage import Stage
from xenvirtio.lab.toolstack import MemoryMode, Toolstack


def play_all(
    plays: Sequence[tuple[Scenario, MemoryMode]],
    obtain: Callable[[], tuple[Machine, bool]],
    boot: Callable[[], Machine],
    progress: Callable[[str], None],
) -> dict[str, Any]:
    """Play all and report: `ok`, `seconds`, `boots` and `scenarios`, one report of `registry.play` each.

    `obtain` gives a machine and whether it is to be stopped at the end; `boot` a fresh one.
    """
    started = time.monotonic()
    reports: list[dict[str, Any]] = []
    machine, ours = obtain()
    boots = int(ours)
    try:
        for number, (scenario, mode) in enumerate(plays, 1):
            if reports and not reports[-1]["clean"]:
                progress("the machine is not as it was; booting it again")
                machine.stop()
                machine, boots = boot(), boots + 1
            progress(f"[{number}/{len(plays)}] {scenario.name} ({mode.name.lower()}): {scenario.description}")
            report = _play(scenario, mode, machine)
            reports.append(report)
            progress(f"      {'ok' if report['ok'] else 'FAILED'} in {report['seconds']} s")
            if not report["ok"]:
                progress(_failure(report))
    finally:
        if ours:
            machine.stop()
        else:
            machine.close()
    return {
        "ok": bool(reports) and all(report["ok"] for report in reports),
        "seconds": round(time.monotonic() - started, 1),
        "boots": boots,
        "scenarios": reports,
    }


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
