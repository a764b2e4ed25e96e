from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from xenvirtio.cli import demo
from xenvirtio.cli.main import main
from xenvirtio.sandbox.demonstration import Demonstration, DeviceReport, Report


def _report(*, right: bool) -> Report:
    device = DeviceReport("block", "alpha", "disk=", "foreign", 4096, 7, 3 << 20, 4096, 4096, ["reboot"])
    if not right:
        device.problems.append("alpha, block 0 in the image file: found zeros, expected generation 1")
    return Report([device], [], 3, 9.87)


@pytest.fixture(params=[True, False], ids=["right", "wrong"])
def right(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    right = bool(request.param)
    monkeypatch.setattr(Demonstration, "__init__", lambda self, directory, **unused: None)
    monkeypatch.setattr(Demonstration, "run", lambda self: _report(right=right))
    return right


def test_text_is_a_table_and_a_verdict(right: bool, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo"]) == (0 if right else 1)
    out, err = capsys.readouterr()
    header, row, verdict = out.splitlines()
    assert header.split() == ["type", "guest", "disk", "memory", "requests", "verified", "what", "happened", "verdict"]
    assert row.split() == ["block", "alpha", "disk=", "foreign", "7", "3", "MiB", "reboot", "ok" if right else "WRONG"]
    if right:
        assert verdict.startswith("ok: every byte verified, 3 MiB in all, 9.9 s, ")
    else:
        assert verdict == "FAILED: alpha, block 0 in the image file: found zeros, expected generation 1"
        assert "--keep DIR" in err


def test_the_plain_table_says_the_same(
    right: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("rich", "rich.console", "rich.table"):
        monkeypatch.setitem(sys.modules, module, None)
    main(["demo"])
    header, row, _ = capsys.readouterr().out.splitlines()
    assert header.index("guest") == row.index("alpha")
    assert row.split()[-1] == ("ok" if right else "WRONG")


def test_json_is_one_object(right: bool, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--format", "json"]) == (0 if right else 1)
    result = json.loads(capsys.readouterr().out)
    (device,) = result["devices"]
    assert result["ok"] is device["verified"] is right
    assert (device["type"], device["guest"], device["requests"]) == ("block", "alpha", 7)
    assert device["bytes_verified"] == 3 << 20


def test_a_failure_without_a_problem_has_a_verdict_too() -> None:
    report = _report(right=True)
    report.devices[0].verified_in_file = 0
    assert demo.verdict(report) == "FAILED: a disk was not verified to its end"
    report.problems += ["one", "two", "three"]
    assert demo.verdict(report) == "FAILED: one (and 2 more, see --format json)"


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf", "4000", "soon"])
def test_seconds_are_checked(seconds: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        main(["demo", f"--seconds={seconds}"])
    assert error.value.code == 2
    assert "--seconds" in capsys.readouterr().err


def test_a_kept_directory_must_be_new(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--keep", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"xenvirtio: --keep {tmp_path}: File exists; name a new directory\n"


def test_the_command_runs_and_keeps_what_it_was_told_to(tmp_path: Path) -> None:
    kept = tmp_path / ("k" * 100)  # longer than a socket's path may be
    command = [sys.executable, "-m", "xenvirtio", "demo", "--seconds", "0.5", "--format", "json", "--keep", str(kept)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["ok"] is True
    assert "took over" in done.stderr
    assert sorted(path.name for path in kept.iterdir()) == ["backend.log", "backends.toml", "images", "state"]
    assert [path.name for path in (kept / "state").iterdir()] == ["lock"]
