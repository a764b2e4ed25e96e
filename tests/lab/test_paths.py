from __future__ import annotations

import threading
from pathlib import Path

import pytest

from xenvirtio.lab import paths


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def test_a_key_depends_on_every_input_and_where_one_ends(tmp_path: Path) -> None:
    file = tmp_path / "input"
    file.write_text("b")
    assert paths.key_of("a", "b") == paths.key_of("a", file)
    assert paths.key_of("a", "b") != paths.key_of("ab")
    assert paths.key_of("a", "b") != paths.key_of("b", "a")


def test_an_artifact_is_built_once_per_key() -> None:
    built = []

    def build(result: Path, scratch: Path) -> None:
        built.append(scratch)
        (result / "file").write_text("x")

    first = paths.artifact("thing", "0" * 16, build)
    assert paths.artifact("thing", "0" * 16, build) == first
    assert paths.artifact("thing", "1" * 16, build) != first
    assert len(built) == 2
    assert not built[0].exists()


def test_a_failed_build_leaves_no_artifact() -> None:
    def build(result: Path, scratch: Path) -> None:
        (result / "half").touch()
        raise RuntimeError

    with pytest.raises(RuntimeError):
        paths.artifact("thing", "0" * 16, build)
    assert paths.find_artifact("thing", "0" * 16) is None


def test_two_builds_of_one_artifact_do_not_collide() -> None:
    built = []
    begun = threading.Event()

    def build(result: Path, scratch: Path) -> None:
        begun.set()
        built.append(1)
        (result / "file").touch()

    threads = [threading.Thread(target=paths.artifact, args=("thing", "0" * 16, build)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert built == [1]


def test_forgetting_old_versions_keeps_other_names() -> None:
    for name in ("a", "a-b"):
        for key in ("0" * 16, "1" * 16):
            paths.artifact(name, key, lambda result, scratch: None)
    paths.forget_old("a", "1" * 16)
    assert paths.find_artifact("a", "0" * 16) is None
    assert paths.find_artifact("a", "1" * 16) is not None
    assert paths.find_artifact("a-b", "0" * 16) is not None
