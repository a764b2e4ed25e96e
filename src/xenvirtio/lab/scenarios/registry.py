"""What a scenario is, the list of all of them, and one run of one of them as a JSON-ready value."""

from __future__ import annotations

import importlib
import pkgutil
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from xenvirtio.errors import UsageError, XenvirtioError
from xenvirtio.lab import scenarios
from xenvirtio.lab.scenarios.machine_stage import MachineStage
from xenvirtio.lab.scenarios.stage import Stage
from xenvirtio.lab.toolstack import MemoryMode

BOTH_MODES = (MemoryMode.FOREIGN, MemoryMode.GRANT)


@dataclass(frozen=True, slots=True)
class Scenario:
    """One story. `run` raises when it goes wrong and gives facts for the report otherwise."""

    name: str
    description: str
    run: Callable[[Stage], dict[str, Any]]
    modes: Sequence[MemoryMode] = BOTH_MODES


@dataclass(frozen=True, slots=True)
class MachineScenario:
    """A story on machines of its own; `machine_stage` shows how one is written. Our shared one is stopped before."""

    name: str
    description: str
    run: Callable[[MachineStage], dict[str, Any]]
    modes: Sequence[MemoryMode] = (MemoryMode.FOREIGN,)
    """Memory modes to play it in; most of these stories have no use for more than one play."""


AnyScenario = Scenario | MachineScenario


def all_scenarios() -> list[AnyScenario]:
    """Every module of this folder that defines `SCENARIO`, in the order of their names."""
    found: list[AnyScenario] = []
    for module in sorted(pkgutil.iter_modules(scenarios.__path__), key=lambda module: module.name):
        loaded = importlib.import_module(f"{scenarios.__name__}.{module.name}")
        scenario = getattr(loaded, "SCENARIO", None)
        if isinstance(scenario, AnyScenario):
            found.append(scenario)
    return found


def select(only: Sequence[str], skip: Sequence[str] = ()) -> list[AnyScenario]:
    """The scenarios of these names, all without names; but none of `skip`.

    Raises:
        UsageError: there is none of that name.
    """
    known = {scenario.name: scenario for scenario in all_scenarios()}
    for name in (*only, *skip):
        if name not in known:
            raise UsageError(f"no scenario {name!r}; there are: {', '.join(known) or 'none yet'}")
    return [known[name] for name in only or known if name not in skip]


def play(scenario: Scenario, stage: Stage) -> dict[str, Any]:
    """Run one scenario in one mode and clear the stage.

    The report has `ok`; when that is false `error`, `trace` and `evidence` (the last lines of the logs). `clean` says
    whether the machine is as it was before.
    """
    def act() -> dict[str, Any]:
        stage.set_up()
        facts = scenario.run(stage)
        stage.toolstack.wait_only_dom0()
        return facts

    started = time.monotonic()
    report = _report(scenario.name, stage.mode, act, stage.evidence)
    report["clean"] = _clear(stage)
    report["seconds"] = round(time.monotonic() - started, 1)
    return report


def play_on_own(scenario: MachineScenario, stage: MachineStage) -> dict[str, Any]:
    """Run one scenario that boots its own machines; reports as `play`, always `clean`, for nothing of it is left."""
    started = time.monotonic()
    report = _report(scenario.name, stage.mode, lambda: scenario.run(stage), lambda: stage.evidence)
    report["clean"] = True
    report["seconds"] = round(time.monotonic() - started, 1)
    return report


def _report(
    name: str, mode: MemoryMode, act: Callable[[], dict[str, Any]], evidence: Callable[[], dict[str, str]]
) -> dict[str, Any]:
    report: dict[str, Any] = {"name": name, "mode": mode.name.lower(), "ok": True}
    try:
        report["facts"] = act()
    except Exception as error:  # a mistake in one scenario is no reason to leave out the others
        report.update(ok=False, error=str(error) or type(error).__name__, trace=traceback.format_exc())
        report["evidence"] = evidence()
    return report


def _clear(stage: Stage) -> bool:
    try:
        stage.tear_down()
        return stage.is_clean()
    except (XenvirtioError, AssertionError):
        return False
