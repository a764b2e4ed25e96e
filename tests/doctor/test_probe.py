"""The probes where they can be run: in a child process, on this machine's kernel, on the emulated host."""

from __future__ import annotations

import errno
import os
import socket
import time
from pathlib import Path

import pytest

from xenvirtio.doctor import probe, runner
from xenvirtio.doctor.answers import Answers, Step
from xenvirtio.doctor.probe import probe_device_model, probe_nodes, probe_privcmd
from xenvirtio.doctor.runner import run_probe
from xenvirtio.errors import HypervisorError
from xenvirtio.xenstore.client import XenStoreClient
from xenvirtio.xenstore.serve import XenStoreService

HERE = Path(__file__).parent


@pytest.fixture
def hanging(monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module that hangs."""
    monkeypatch.setenv("PYTHONPATH", str(HERE) + os.pathsep + os.environ.get("PYTHONPATH", ""))
    monkeypatch.setattr(runner, "GRACE_S", 0.3)
    return "hanging"


@pytest.mark.parametrize("kind", ["polite", "deaf"])
def test_what_came_before_a_hang_is_kept(hanging: str, kind: str) -> None:
    begun = time.monotonic()
    answers = run_probe(kind, deadline_s=2.0, module=hanging)
    assert answers.worked("first")
    assert answers.hung
    assert time.monotonic() - begun < 30


def test_a_probe_that_breaks_complains(hanging: str) -> None:
    answers = run_probe("broken", module=hanging)
    assert not answers.hung
    assert answers.complaint == "RuntimeError: no such luck"


def test_the_kernel_probe_runs_as_a_process() -> None:
    assert run_probe("kernel").worked("eventfd")


def test_steps_survive_the_pipe() -> None:
    step = Step("xen_config", 0, 'CONFIG_A="x"\nCONFIG_B=y\n')
    assert list(Answers.parse([step.encode()])) == [step]


def test_absent_nodes_answer_enoent(tmp_path: Path) -> None:
    steps = [*probe_nodes(str(tmp_path)), *probe_privcmd(str(tmp_path))]
    assert {step.name: step.error for step in steps} == dict.fromkeys(
        ("evtchn", "gntdev", "gntalloc", "xenbus", "privcmd"), errno.ENOENT
    )


def test_nodes_that_are_no_devices_refuse_every_question(tmp_path: Path) -> None:
    for name in ("evtchn", "gntdev", "gntalloc", "xenbus", "privcmd"):
        (tmp_path / name).touch()
    answers = Answers.of(*probe_nodes(str(tmp_path)), *probe_privcmd(str(tmp_path)))
    assert answers.worked("privcmd")
    for question in ("grant_copy", "irqfd", "hypercall", "command_line", "xen_config"):
        assert answers.failed(question, errno.ENOTTY)


class _Model:
    """A device model that refuses what it is told to."""

    domid = 7

    def __init__(self, **refusals: int) -> None:
        self._refusals = refusals
        self.done: list[str] = []

    def _do(self, operation: str) -> int:
        self.done.append(operation)
        if operation in self._refusals:
            raise HypervisorError(operation, self._refusals[operation], domid=7)
        return 1

    def nr_vcpus(self) -> int:
        return self._do("nr_vcpus")

    def create_ioreq_server(self) -> int:
        return self._do("create")

    def map_ioreq_page(self, server: int) -> _Model:
        self._do("map")
        return self

    def destroy_ioreq_server(self, server: int) -> None:
        self._do("destroy")

    def close(self) -> None:
        self.done.append("close")


def _probe(model: _Model) -> Answers:
    return Answers.of(*probe_device_model(model))  # type: ignore[arg-type]


def test_a_created_server_is_destroyed_and_never_enabled() -> None:
    model = _Model()
    assert all(step.worked for step in _probe(model))
    assert model.done == ["nr_vcpus", "create", "map", "close", "destroy", "close"]


def test_a_server_whose_page_cannot_be_mapped_is_destroyed_all_the_same() -> None:
    model = _Model(map=errno.ENOENT)
    answers = _probe(model)
    assert answers.failed("map", errno.ENOENT)
    assert answers.worked("destroy")


def test_a_refused_server_is_not_destroyed() -> None:
    model = _Model(create=errno.EPERM)
    assert _probe(model).failed("create", errno.EPERM)
    assert "destroy" not in model.done


def test_the_xenstore_probe_finds_a_guest_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "socket"
    monkeypatch.setenv("XENSTORED_PATH", str(path))
    with XenStoreService() as service, XenStoreClient.at(path) as store:
        service.listen(path)
        store.write("/local/domain/0/domid", "0")
        store.write("/local/domain/9/name", "linux-1")
        answers = run_probe("xenstore", ["linux-1"])
        assert answers.worked("socket")
        assert answers.value("domid") == "0"
        assert answers.failed("target", errno.ENOENT)
        assert answers.value("guest") == "9"
        assert run_probe("xenstore", ["linux-2"]).failed("guest", errno.ENOENT)


def test_the_xenstore_probe_tells_a_dead_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "socket"
    monkeypatch.setenv("XENSTORED_PATH", str(path))
    monkeypatch.setattr(probe, "XENSTORE_TIMEOUT_S", 0.2)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    answers = Answers.of(*probe.probe_xenstore())
    assert answers.failed("socket", errno.ECONNREFUSED)
    assert answers.failed("connect", errno.ETIMEDOUT)
