from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from xenvirtio.errors import ConfigurationError, ResourceError
from xenvirtio.lab.artifacts import xen_source
from xenvirtio.lab.artifacts.kconfig import known_options
from xenvirtio.lab.artifacts.xen_source import (
    SOURCE_VARIABLE,
    fetch_debian_source,
    given_source,
    source_key,
    unpack_source,
)


def _tree(folder: Path) -> Path:
    (folder / "xen").mkdir(parents=True)
    (folder / "xen/Makefile").write_text("export XEN_VERSION = 4\n")
    (folder / "xen/link.h").symlink_to("Makefile")
    return folder


class _Suite:
    def __init__(self, answer: Path | str) -> None:
        self._answer = answer

    def source_file(self, package: str, pattern: str) -> Path:
        if isinstance(self._answer, str):
            raise ResourceError(self._answer)
        return self._answer


def _suites(monkeypatch: pytest.MonkeyPatch, **answers: Path | str) -> None:
    suites: Any = tuple((name, lambda answer=answer: _Suite(answer)) for name, answer in answers.items())
    monkeypatch.setattr(xen_source, "_SUITES", suites)


GONE = (
    "fetching xen_4.20.4.orig.tar.xz: apt-helper ended with 100; apt.log ends:\n  Reading\n"
    "  E: Failed to fetch http://mirror/pool/xen_4.20.4.orig.tar.xz  404  Not Found [IP: 203.0.113.80 80]"
)


def test_a_file_that_one_suite_lists_and_lacks_comes_from_the_next(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _suites(monkeypatch, trixie=GONE, sid=tmp_path / "found")
    assert fetch_debian_source() == tmp_path / "found"


def test_where_it_was_looked_for_is_said_with_what_was_missing_there(monkeypatch: pytest.MonkeyPatch) -> None:
    _suites(monkeypatch, trixie=GONE, sid="source package xen: no file matches")
    with pytest.raises(ResourceError) as caught:
        fetch_debian_source()
    lines = str(caught.value).splitlines()
    assert lines[1] == "  trixie: http://mirror/pool/xen_4.20.4.orig.tar.xz: 404 Not Found [IP: 203.0.113.80 80]"
    assert lines[2] == "  sid: source package xen: no file matches"
    assert SOURCE_VARIABLE in lines[3]


def test_the_key_follows_what_the_tree_holds_and_not_where_it_lies(tmp_path: Path) -> None:
    one, two = _tree(tmp_path / "one"), _tree(tmp_path / "two")
    assert source_key(one) == source_key(two)
    (two / "xen/Makefile").write_text("export XEN_VERSION = 5\n")
    assert source_key(one) != source_key(two)


def test_of_a_git_tree_what_was_built_in_it_is_no_source(tmp_path: Path) -> None:
    tree = _tree(tmp_path / "tree")
    subprocess.run(["git", "init", "-q", tree], check=True)
    (tree / ".gitignore").write_text("*.o\n")
    before = source_key(tree)
    (tree / "xen/a.o").write_bytes(b"built")
    assert source_key(tree) == before
    (tree / "xen/new.c").write_bytes(b"int a;")
    assert source_key(tree) != before
    unpack_source(tree, tmp_path / "copy", tmp_path / "log")
    copied = sorted(str(path.relative_to(tmp_path / "copy")) for path in (tmp_path / "copy").rglob("*"))
    assert copied == [".gitignore", "xen", "xen/Makefile", "xen/link.h", "xen/new.c"]
    assert (tmp_path / "copy/xen/link.h").is_symlink()


def test_a_tarball_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    subprocess.run(["tar", "-cf", tmp_path / "a.tar", "-C", tmp_path, "other"], check=True)
    (tmp_path / "into").mkdir()
    with pytest.raises(ResourceError, match="no source of Xen"):
        unpack_source(tmp_path / "a.tar", tmp_path / "into", tmp_path / "log")


@pytest.mark.parametrize(("name", "found"), [("nothing", "does not exist"), (".", "has no xen/Makefile")])
def test_what_the_variable_names_has_to_be_xen(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, found: str
) -> None:
    monkeypatch.setenv(SOURCE_VARIABLE, str(tmp_path / name))
    with pytest.raises(ConfigurationError, match=found):
        given_source()


def test_options_are_known_by_the_tree_that_defines_them(tmp_path: Path) -> None:
    (tmp_path / "arch").mkdir()
    (tmp_path / "arch/Kconfig.debug").write_text("menuconfig DEBUG\n\tbool\n\nconfig ARGO\n\tdef_bool y\n")
    assert known_options(tmp_path) == {"CONFIG_DEBUG", "CONFIG_ARGO"}
