from __future__ import annotations

import os
from pathlib import Path

import pytest

from xenvirtio.lab.artifacts import bytecode
from xenvirtio.lab.artifacts.bytecode import byte_code_input, compile_tree, host_python


@pytest.fixture
def fresh() -> None:
    host_python.cache_clear()


def test_without_a_fitting_python_nothing_is_compiled_and_nothing_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh: None
) -> None:
    old = tmp_path / "python3.13"
    old.write_text("#!/bin/sh\nexit 1\n")  # what a shim of a version that is not there does
    old.chmod(0o755)
    monkeypatch.setattr(bytecode, "_candidates", lambda: iter([str(old), str(tmp_path / "missing")]))
    (tmp_path / "one.py").write_text("a = 1\n")
    compile_tree(tmp_path, ".", tmp_path / "log", checked=False)
    assert byte_code_input() == "source only"
    assert sorted(os.listdir(tmp_path)) == ["one.py", "python3.13"]
    host_python.cache_clear()


def test_byte_code_names_the_file_where_it_will_lie(tmp_path: Path, fresh: None) -> None:
    if host_python() is None:
        pytest.skip("this machine has no Python 3.13")
    module = tmp_path / "root/opt/one.py"
    module.parent.mkdir(parents=True)
    module.write_text("a = 1\n")
    compile_tree(tmp_path / "root", "opt", tmp_path / "log", checked=True)
    (made,) = module.parent.rglob("*.pyc")
    assert b"/opt/one.py" in made.read_bytes()
    assert str(tmp_path).encode() not in made.read_bytes()
    assert made.read_bytes()[4] == 0b11, "flags: by hash, checked"
