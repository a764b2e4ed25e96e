"""`xenvirtio serve` where it cannot work, and its checks of the configuration."""

from __future__ import annotations

from pathlib import Path

import pytest

from xenvirtio.cli import main as cli
from xenvirtio.cli import serve

ENTRY = '[[device]]\nguest = "a"\ntype = "block"\nresource = {{ file = "/srv/a.img" }}\n[daemon]\nstate_dir = "{}"\n'


def test_without_xen_it_says_so_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(serve, "DEVICE_NODES", tmp_path / "none")
    configuration = tmp_path / "b.toml"
    configuration.write_text(ENTRY.format(tmp_path / "state"))
    assert cli.main(["serve", str(configuration)]) == 1
    assert "does not run on Xen" in capsys.readouterr().err.splitlines()[-1]


def test_check_reads_the_configuration_and_touches_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    configuration = tmp_path / "b.toml"
    configuration.write_text(ENTRY.format(tmp_path / "state"))
    assert cli.main(["serve", "--check", str(configuration)]) == 0
    assert capsys.readouterr().out == f"{configuration}: fine, 1 device entries\n"
    assert not (tmp_path / "state").exists()


def test_a_wrong_configuration_is_one_line_and_status_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    configuration = tmp_path / "b.toml"
    configuration.write_text('[[device]]\nguest = "a"\ntype = "blok"\nresource = { file = "/srv/a.img" }\n')
    assert cli.main(["serve", str(configuration)]) == 2
    error = capsys.readouterr().err
    assert error == f"xenvirtio: {configuration}: device[0]: type: found 'blok'; allowed: one of block\n"
