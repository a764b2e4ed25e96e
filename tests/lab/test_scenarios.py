from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import xenvirtio.lab
from xenvirtio.errors import ResourceError, UsageError
from xenvirtio.lab.scenarios import theatre
from xenvirtio.lab.scenarios.bad_entries import BY_HAND, BY_XL, EXPECTED
from xenvirtio.lab.scenarios.nonsense import ROUNDS
from xenvirtio.lab.scenarios.registry import Scenario, all_scenarios, select
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


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UsageError, match="filesystem"):
        select(["nothing"])


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
    report = theatre.play_all(plays, lambda: (machines[0], False), boot, said.append)
    assert [play["ok"] for play in report["scenarios"]] == [True, False, True]
    assert not report["ok"]
    assert len(machines) == 2
    assert machines[0].stopped
    assert any("why" in line for line in said)
