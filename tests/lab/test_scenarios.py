from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import xenvirtio.lab
from xenvirtio.errors import ResourceError, UsageError
from xenvirtio.ids import DomId
from xenvirtio.lab.domain_console import domain_lines
from xenvirtio.lab.options import MachineOptions
from xenvirtio.lab.scenarios import theatre
from xenvirtio.lab.scenarios.bad_entries import BY_HAND, BY_XL, EXPECTED
from xenvirtio.lab.scenarios.machine_stage import MachineStage
from xenvirtio.lab.scenarios.nonsense import ROUNDS
from xenvirtio.lab.scenarios.registry import MachineScenario, Scenario, all_scenarios, select
from xenvirtio.lab.scenarios.tree import parse_checksums
from xenvirtio.lab.toolstack import MemoryMode, parse_domains


def test_every_story_of_the_issue_has_a_scenario_and_a_name_of_its_own() -> None:
    names = [scenario.name for scenario in all_scenarios()]
    assert len(set(names)) == len(names)
    assert {
        "filesystem",
        "three-guests",
        "lifecycle",
        "takeover",
        "debian-kernel",
        "destroy-under-load",
        "grow",
        "nonsense",
        "bad-entries",
        "configured",
    } <= set(names)


def test_every_scenario_has_a_row_in_the_docs() -> None:
    docs = Path(__file__).parents[2] / "docs/lab.md"
    rows = re.findall(r"^\| ([a-z0-9-]+) \|", docs.read_text(), re.MULTILINE)
    assert {scenario.name for scenario in all_scenarios()} - set(rows) == set()


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UsageError, match="filesystem"):
        select(["nothing"])
    with pytest.raises(UsageError, match="no scenario 'nothing'"):
        select([], ["nothing"])


def test_some_can_be_left_out() -> None:
    every = [scenario.name for scenario in all_scenarios()]
    assert [scenario.name for scenario in select([], ["doctor"])] == [name for name in every if name != "doctor"]
    assert [scenario.name for scenario in select(["doctor", "grow"], ["doctor"])] == ["grow"]


def test_checksums_are_read_as_sha256sum_writes_them() -> None:
    assert parse_checksums(f"{'a' * 64}  ./b c\nsha256sum: no\n") == {"./b c": "a" * 64}


def test_domains_are_read_as_xl_list_prints_them() -> None:
    (dom0, dying) = parse_domains(
        "Name   ID   Mem VCPUs\tState\tTime(s)\n"
        "Domain-0    0   768     2     r-----     153.2\n"
        "(null)      4     0     1     --p--d       1.0\n"
    )
    assert (dom0.name, dom0.state, dom0.cpu_s) == ("Domain-0", "r", 153.2)
    assert (dying.name, dying.domid, dying.state) == ("(null)", 4, "pd")


def test_every_mistake_has_its_warning() -> None:
    assert len(EXPECTED) == len(BY_XL) + len(BY_HAND)
    assert all(re.compile(pattern) for pattern in EXPECTED)


def test_the_nonsense_rounds_go_over_every_variation_alike() -> None:
    source = (Path(xenvirtio.lab.__file__).parent / "guest/badring.c").read_text()
    variations = re.findall(r"^    \{\"\w+\", \w+, MUST_", source, re.MULTILINE)
    assert ROUNDS % len(variations) == 0


class _Machine:
    def __init__(self) -> None:
        self.stopped = False

    def dom0(self) -> None:
        if self.stopped:
            raise ResourceError("gone")

    def stop(self) -> None:
        self.stopped = True

    def close(self) -> None:
        pass


def test_a_spoilt_machine_is_booted_again_and_the_rest_is_played(monkeypatch: pytest.MonkeyPatch) -> None:
    machines: list[Any] = [_Machine()]

    def play(scenario: Scenario, stage: Any) -> dict[str, Any]:
        ok = scenario.name != "spoiler"
        return {"name": scenario.name, "mode": "grant", "ok": ok, "clean": ok, "seconds": 0.0, "error": "why"}

    def boot() -> Any:
        machines.append(_Machine())
        return machines[-1]

    monkeypatch.setattr(theatre, "play", play)
    monkeypatch.setattr(theatre, "Toolstack", lambda dom0: None)
    plays = [(Scenario(name, "", lambda stage: {}), MemoryMode.GRANT) for name in ("first", "spoiler", "last")]
    said: list[str] = []
    shared = theatre.SharedMachine(lambda: (machines[0], False), boot)
    report = theatre.play_all(plays, shared, _no_start, said.append)
    assert [play["ok"] for play in report["scenarios"]] == [True, False, True]
    assert not report["ok"]
    assert len(machines) == 2
    assert machines[0].stopped
    assert any("why" in line for line in said)


def _no_start(options: MachineOptions, name: str) -> Any:
    raise AssertionError(f"nobody asked for machine {name}")


class _OwnMachine(_Machine):
    """Boots at once, and has lost its dom0."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self.serial_log = folder / "serial.log"
        self.serial_log.write_bytes(b"(XEN) DOM1: GUEST: here\r\r\n(XEN) last words\r\n")

    def dom0(self) -> None:
        raise ResourceError("no answer")

    def wait_until_up(self) -> None:
        pass

    def domain_lines(self, domid: int) -> list[str]:
        return domain_lines(self.serial_log.read_bytes().decode(), DomId(domid))

    def stop(self, *, at_once: bool = False) -> None:
        self.stopped = True


def test_a_scenario_with_its_own_machine_comes_last_and_leaves_evidence_but_no_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ok = {"name": "shared", "mode": "foreign", "ok": True, "clean": True, "seconds": 0.0}
    monkeypatch.setattr(theatre, "play", lambda scenario, stage: ok)
    monkeypatch.setattr(theatre, "Toolstack", lambda dom0: None)
    order: list[str] = []
    machines: list[_OwnMachine] = []
    shared_machine = _Machine()
    shared: Any = shared_machine

    def run(stage: MachineStage) -> dict[str, Any]:
        order.append("own")
        assert shared_machine.stopped, "two machines at once"
        with stage.boot(name="one"):
            raise AssertionError("it went wrong")

    def start(options: MachineOptions, name: str) -> Any:
        machines.append(_OwnMachine(tmp_path))
        return machines[-1]

    def obtain() -> tuple[Any, bool]:
        order.append("shared")
        return shared, True

    plays: list[theatre.Play] = [
        (MachineScenario("own", "", run), MemoryMode.FOREIGN),
        (Scenario("shared", "", lambda stage: {}), MemoryMode.FOREIGN),
    ]
    report = theatre.play_all(plays, theatre.SharedMachine(obtain, lambda: shared), start, lambda line: None)
    assert order == ["shared", "own"]
    assert [machine.stopped for machine in machines] == [True]
    (_, own) = report["scenarios"]
    assert own["error"] == "it went wrong"
    assert own["evidence"]["domain 1"] == "GUEST: here"
    assert "last words" in "".join(own["evidence"].values())
    assert "no answer" in own["evidence"]["dom0's logs"]
