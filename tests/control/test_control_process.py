"""`xenvirtio control` on the emulated host: its store, its backend and itself are killed under a guest's I/O."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.control.processes import Program, planned_guest, until
from tests.control.world import PLAN
from tests.sandbox.rig import GuestIo, Image
from xenvirtio.ids import DomId
from xenvirtio.sandbox.toolstack import CreatedGuest
from xenvirtio.xen.capabilities import XenVersion
from xenvirtio.xen.emulated import EmulatedHost
from xenvirtio.xenstore.client import XenStoreClient

STATE = "/local/domain/0/backend/virtio/1/0/state"


class Machine:
    """A host with two domains of 1 and 2 vCPUs that nobody has introduced."""

    def __init__(self, directory: Path, *, grants: bool) -> None:
        self.directory = directory
        self.host = EmulatedHost()
        self.host.listen(directory / "hypervisor")
        self.guest: CreatedGuest = planned_guest("alpha", self.host.create_dom0less_domain(vcpus=1), grants=grants)
        self.second = self.host.create_dom0less_domain(vcpus=2)
        self.image = Image(directory / "disk.img")
        (directory / "plan.toml").write_text(PLAN.replace("grants = true", f"grants = {str(grants).lower()}"))
        (directory / "backends.toml").write_text(
            f'[daemon]\nstate_dir = "{directory}/serve"\n[[device]]\nguest = "alpha"\ntype = "block"\n'
            f'resource = {{ file = "{self.image.path}" }}\n'
        )
        self.store = XenStoreClient.at(directory / "xenstore")
        self.programs: list[Program] = []

    def control(self, *more: str) -> Program:
        files = {"--plan": "plan.toml", "--serve": "backends.toml", "--state": "control"}
        arguments = [word for option, name in files.items() for word in (option, str(self.directory / name))]
        program = Program(
            "control", "--emulated", str(self.directory), *arguments, *more, log=self.directory / "control.log"
        )
        self.programs.append(program)
        return program

    def is_served(self) -> bool:
        return self.store.read_optional(STATE) == "2"

    def close(self) -> None:
        for program in self.programs:
            program.close()
        self.store.close()
        self.host.close()


@contextmanager
def open_machine(directory: Path, *, grants: bool = False) -> Iterator[Machine]:
    machine = Machine(directory, grants=grants)
    try:
        yield machine
    finally:
        machine.close()


@pytest.fixture(params=[False, True], ids=["foreign", "grants"])
def machine(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Machine]:
    with open_machine(tmp_path, grants=bool(request.param)) as machine:
        yield machine


def test_every_process_may_be_killed_under_verified_io(machine: Machine) -> None:
    control = machine.control()
    until(machine.is_served)
    until(lambda: machine.store.is_domain_introduced(2))
    assert machine.store.directory("/local/domain/2/cpu") == ["0", "1"]
    vm = machine.store.read("/local/domain/1/vm")
    io = GuestIo(machine.guest, machine.image)
    io.progress()

    for name in ("backend", "store"):
        os.kill(control.child(name), signal.SIGKILL)
        until(lambda name=name: control.starts(name) == 2)
        io.progress()
        assert machine.store.read("/local/domain/1/vm") == vm

    control.kill()
    successor = machine.control()
    until(lambda: "ready" in successor.messages() and successor.starts("backend") > 0)
    io.progress()
    until(lambda: any(line.get("adopted") is True for line in successor.log()))
    assert machine.store.read("/local/domain/1/vm") == vm
    assert "domain introduced" not in successor.messages()
    io.stop()
    machine.image.assert_right()
    assert successor.terminate() == 0
    assert successor.messages()[-1] == "ended"


@pytest.mark.parametrize("by_itself", [True, False], ids=["crashed", "destroyed"])
def test_a_domain_that_ends_is_cleared_away_and_its_backend_with_it(machine: Machine, by_itself: bool) -> None:
    control = machine.control()
    until(machine.is_served)
    GuestIo(machine.guest, machine.image).stop()
    if by_itself:
        machine.guest.domain.crash("as told")
    else:
        machine.host.destroy_domain(DomId(1))
    until(lambda: machine.host.domain(DomId(1)) is None)
    until(lambda: not machine.store.exists("/local/domain/1"))
    until(lambda: not list((machine.directory / "serve").glob("guest-1.state")))
    assert machine.store.exists("/local/domain/2")
    assert control.process.poll() is None


def test_once_needs_a_store_and_leaves_it_running(tmp_path: Path) -> None:
    with open_machine(tmp_path) as machine:
        store = Program("store", "serve", "--socket", tmp_path / "xenstore", log=tmp_path / "store.log")
        machine.programs.append(store)
        arguments = ("control", "--emulated", str(tmp_path), "--once")
        once = Program(*arguments, log=tmp_path / "once.log")
        assert once.process.wait(60) == 0
        assert machine.store.is_domain_introduced(1)
        assert machine.store.is_domain_introduced(2)
        assert once.log()[-1]["introduced"] == 2
        again = Program(*arguments, log=tmp_path / "once.log")
        assert again.process.wait(60) == 0
        assert again.log()[-1]["introduced"] == 0


def test_an_unknown_xen_is_refused_in_one_line(tmp_path: Path) -> None:
    with EmulatedHost(version=XenVersion(4, 99)) as host:
        host.listen(tmp_path / "hypervisor")
        program = Program("control", "--emulated", tmp_path, "--state", tmp_path / "s", log=tmp_path / "log")
        assert program.process.wait(60) == 1
        assert len(program.log()) == 1
        assert "this is Xen 4.99, whose control interface is not known; known: 4.17 to 4.22" in program.messages()[0]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("--plan", "{}/absent.toml"), "absent.toml"),
        (("--plan", "{}/guest.toml"), "guest.toml: domid: found 1, the plan of 'alpha'; allowed: 0, dom0's own plan"),
        (("--serve", "{}/wrong.toml"), "wrong.toml"),
        (("--serve", "{}/wrong.toml", "--no-serve"), "--serve: contradicts --no-serve"),
    ],
)
def test_wrong_input_ends_it_before_anything_is_started(
    tmp_path: Path, arguments: tuple[str, ...], problem: str
) -> None:
    of_a_guest = PLAN.replace("domid = 0", "domid = 1").replace('name = "dom0"', 'name = "alpha"')
    (tmp_path / "guest.toml").write_text(of_a_guest)
    (tmp_path / "wrong.toml").write_text("[daemon]\nx = 1\n")
    filled = [argument.format(tmp_path) for argument in arguments]
    program = Program("control", "--emulated", tmp_path, *filled, log=tmp_path / "log")
    assert program.process.wait(60) == 2
    assert problem in program.messages()[-1]
    assert program.starts("store") == 0


def test_a_second_control_is_refused(machine: Machine) -> None:
    machine.control()
    until(machine.is_served)
    second = machine.control()
    assert second.process.wait(60) == 2
    assert "another xenvirtio control is running here" in second.messages()[-1]
