"""What people and programs read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.doctor.world import EACCES, World, bare, dom0
from xenvirtio.cli import main as cli
from xenvirtio.doctor.answers import Step
from xenvirtio.doctor.finding import Finding, Status
from xenvirtio.doctor.report import as_json, as_text, summary


def _first_line(world: World) -> str:
    return summary(world.machine(), list(world.findings().values()))


def test_the_first_line_without_xen_says_so_and_what_works(tmp_path: Path) -> None:
    line = _first_line(bare(tmp_path))
    assert line.startswith("This machine does not run on Xen")
    assert "xenvirtio demo" in line


def test_the_first_line_of_a_good_dom0(tmp_path: Path) -> None:
    assert _first_line(dom0(tmp_path)) == "Xen 4.20.4-pre, dom0: everything that `xenvirtio serve` needs is here."


def test_the_first_line_counts_and_names_what_is_missing(tmp_path: Path) -> None:
    world = dom0(tmp_path)
    world.answer("nodes", Step("evtchn", EACCES))
    assert _first_line(world).endswith("1 thing missing for `xenvirtio serve`: evtchn.")


def test_text_is_aligned_and_explains_only_what_is_not_ok(tmp_path: Path) -> None:
    findings = [
        Finding("xen", Status.OK, "Xen 4.20", "not shown"),
        Finding("grant copy", Status.MISSING, "no", "because " * 30, "modprobe it"),
    ]
    lines = as_text(dom0(tmp_path).machine(), findings, 80).splitlines()
    assert "ok       xen         Xen 4.20" in lines
    assert "missing  grant copy  no" in lines
    assert "           get it: modprobe it" in lines
    assert "not shown" not in "\n".join(lines)
    assert max(map(len, lines)) <= 80


def test_json_has_ok_and_checks(tmp_path: Path) -> None:
    world = bare(tmp_path)
    document = json.loads(as_json(world.machine(), list(world.findings().values())))
    assert document["ok"] is False
    assert document["checks"][0] == {
        "name": "xen",
        "status": "missing",
        "found": document["checks"][0]["found"],
        "meaning": document["checks"][0]["meaning"],
        "remedy": document["checks"][0]["remedy"],
    }


def test_the_command_runs_on_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    status = cli.main(["doctor", "--format", "json"])
    document = json.loads(capsys.readouterr().out)
    assert status == (0 if document["ok"] else 1)
    assert {"xen", "ioreq", "engine"} <= {check["name"] for check in document["checks"]}
