"""What the command says, in one line, when something that it needs is not installed or not there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from xenvirtio.cli.main import main


def test_missing_extra_is_named() -> None:
    # in a process of its own: other tests hold on to the modules that would have to be forgotten here
    hidden = "import sys; sys.modules['pexpect'] = None"
    program = f"{hidden}\nfrom xenvirtio.cli.main import main\nsys.exit(main(['lab', 'shell']))"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1
    assert ended.stderr == "xenvirtio: lab needs the Python module pexpect; pip install 'xenvirtio[lab]'\n"


def test_a_module_of_our_own_that_is_missing_is_a_defect(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "xenvirtio.cli.doctor", None)
    with pytest.raises(ModuleNotFoundError):
        main(["doctor"])


def test_absent_plan_says_who_writes_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["msg", "info", "disk0", "--plan", str(tmp_path / "plan.toml")]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"xenvirtio: {tmp_path / 'plan.toml'}: there is no such plan; ")
    assert "static build" in error
    assert error.count("\n") == 1


def test_unreadable_plan_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(path: Path, *_: object, **__: object) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_text", refuse)
    monkeypatch.setattr(Path, "stat", refuse)
    assert main(["msg", "info", "disk0", "--plan", str(tmp_path / "plan.toml")]) == 2
    assert "plan.toml: Permission denied; give the path of a readable file" in capsys.readouterr().err
