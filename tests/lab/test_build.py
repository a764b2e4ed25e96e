from __future__ import annotations

import time
from pathlib import Path

import pytest

from xenvirtio.errors import ResourceError
from xenvirtio.lab import build as build_module
from xenvirtio.lab.build import build_all, build_images
from xenvirtio.lab.options import Dom0Root, MachineOptions


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the steps that were run; none of them takes any time."""
    names: list[str] = []

    def step(name: str) -> Path:
        names.append(name)
        return Path(name)

    steps = tuple((name, name, lambda name=name: step(name)) for name, _, _ in build_module.STEPS)
    monkeypatch.setattr(build_module, "STEPS", steps)
    monkeypatch.setattr(build_module, "check_host_tools", lambda: None)
    return names


@pytest.mark.parametrize(("root", "made"), [(Dom0Root.FULL, "rootfs"), (Dom0Root.LIGHT, "light-root")])
def test_a_machine_builds_the_root_that_it_boots_and_not_the_other(
    built: list[str], root: Dom0Root, made: str
) -> None:
    images = build_images(MachineOptions(root=root), lambda line: None)
    assert images.root == Path(made)
    assert {"rootfs", "light-root"} & set(built) == {made}
    assert "guest-python" not in built


def test_nothing_is_said_of_what_is_there(built: list[str]) -> None:
    said: list[str] = []
    build_all(said.append)
    assert said == []
    assert len(built) == len(build_module.STEPS)


def test_a_step_that_takes_its_time_is_announced_and_a_failed_one_is_the_last(
    built: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow() -> Path:
        time.sleep(1.2)
        raise ResourceError("no file")

    monkeypatch.setattr(build_module, "STEPS", (*build_module.STEPS[:2], ("slow", "something slow", slow)))
    said: list[str] = []
    with pytest.raises(ResourceError):
        build_all(said.append)
    assert said == ["[3/3] something slow"]
