"""Domains come, are introduced once, die and are cleared away, whatever was cut off in between."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from uuid import UUID

import pytest

from tests.control.world import World, open_world, plan
from xenvirtio.control.introducer import MARKS, Introducer, OnStop
from xenvirtio.control.store_page import STORE_GFN
from xenvirtio.errors import HypervisorError
from xenvirtio.ids import DomId
from xenvirtio.xen.capabilities import NO_PFN, HvmParam, XenVersion

BACKEND = "/local/domain/0/backend/virtio/1/0"


def test_dom0_and_two_domains_of_one_and_two_vcpus(tmp_path: Path) -> None:
    with open_world(tmp_path) as world:
        world.host.create_dom0less_domain(vcpus=1)
        world.host.create_dom0less_domain(vcpus=2)
        outcome = world.introducer().reconcile()
        assert outcome.introduced == [1, 2]
        read = world.store.read
        assert (read("/local/domain/0/domid"), read("/local/domain/0/name")) == ("0", "Domain-0")
        assert read("/local/domain/2/name") == "dom0less-2"
        assert world.store.directory("/local/domain/1/cpu") == ["0"]
        assert world.store.directory("/local/domain/2/cpu") == ["0", "1"]
        assert read("/local/domain/2/cpu/1/availability") == "online"
        assert read("/local/domain/2/store/port") == "1"
        assert read("/local/domain/2/store/ring-ref") == str(0x39001)
        vm = read("/local/domain/2/vm")
        assert (read(f"{vm}/name"), read(f"{vm}/uuid")) == ("dom0less-2", vm.removeprefix("/vm/"))
        handles = {info.domid: info.handle for info in world.control.domains()}
        assert handles[DomId(2)] == UUID(vm.removeprefix("/vm/")).bytes
        assert int(read("/local/domain/1/memory/static-max")) == 64 << 10
        assert world.rings.connected == {1: 1, 2: 1}
        assert world.connection_word(DomId(1)) == 0


def test_a_guest_reads_its_identity_and_writes_only_where_it_may(tmp_path: Path) -> None:
    with open_world(tmp_path) as world:
        world.host.create_dom0less_domain()
        world.introducer(plan()).reconcile()
        permissions = world.store.get_permissions
        for key in ("", "/name", "/vm", "/domid", "/memory/target", "/cpu/0/availability", "/device", "/store/port"):
            assert permissions(f"/local/domain/1{key}") == ["n0", "r1"], key
        for key in ("data", "feature", "attr", "error", "drivers", "control/shutdown", "control/feature-poweroff"):
            assert permissions(f"/local/domain/1/{key}") == ["n1", "r0"], key
        assert permissions("/local/domain/1/device/virtio/0") == ["n1", "r0"]
        assert permissions(f"{BACKEND}/state") == ["n0", "r1"]
        assert permissions(f"{MARKS}/1") == ["n0"]


def test_planned_devices_as_xl_writes_them(tmp_path: Path) -> None:
    with open_world(tmp_path) as world:
        world.host.create_dom0less_domain()
        world.introducer(plan()).reconcile()
        found = {key: world.store.read(f"{BACKEND}/{key}") for key in world.store.directory(BACKEND)}
        assert found == {
            "frontend": "/local/domain/1/device/virtio/0",
            "frontend-id": "1",
            "online": "1",
            "irq": "33",
            "base": "0x2000000",
            "type": "virtio,device2",
            "transport": "mmio",
            "grant_usage": "1",
            "state": "1",
        }
        assert world.store.read("/local/domain/1/name") == "alpha"
        assert world.store.read("/local/domain/1/device/virtio/0/backend") == BACKEND


def test_a_planned_domain_keeps_its_uuid_through_reboots(tmp_path: Path) -> None:
    uuids = []
    for boot in range(2):
        (tmp_path / str(boot)).mkdir()
        with open_world(tmp_path / str(boot)) as world:
            world.host.create_dom0less_domain()
            world.introducer(plan()).reconcile()
            uuids.append(world.store.read("/local/domain/1/vm"))
    assert uuids[0] == uuids[1]


def test_a_page_that_xen_made_itself_is_used(tmp_path: Path) -> None:
    with open_world(tmp_path, XenVersion(4, 21)) as world:
        world.host.create_dom0less_domain()
        before = world.control.domains()[1].max_pages
        assert world.introducer().reconcile().introduced == [1]
        assert world.control.domains()[1].max_pages == before
        assert world.rings.connected == {1: 1}


def test_a_domain_without_xenstore_is_entered_for_its_backends_and_not_introduced(tmp_path: Path) -> None:
    with open_world(tmp_path) as world:
        world.host.create_domain()
        introducer = world.introducer(plan())
        outcome = introducer.reconcile()
        assert (outcome.introduced, outcome.without_store) == ([], [1])
        assert world.store.read("/local/domain/1/name") == "alpha"
        assert world.store.read(f"{BACKEND}/state") == "1"
        assert not world.store.exists("/local/domain/1/store")
        assert not world.store.is_domain_introduced(1)
        world.store.write(f"{BACKEND}/state", "2")
        introducer.reconcile()
        assert world.store.read(f"{BACKEND}/state") == "2"


def test_what_is_introduced_is_not_introduced_again(tmp_path: Path) -> None:
    with open_world(tmp_path) as world:
        world.host.create_dom0less_domain()
        world.introducer(plan()).reconcile()
        world.store.write(f"{BACKEND}/state", "2")
        vm = world.store.read("/local/domain/1/vm")
        successor = world.introducer(plan())
        assert successor.reconcile().introduced == []
        assert world.rings.connected == {1: 1}
        assert world.store.read(f"{BACKEND}/state") == "2"
        assert world.store.read("/local/domain/1/vm") == vm


def test_a_domain_of_a_toolstack_is_left_alone(tmp_path: Path) -> None:
    with open_world(tmp_path) as world:
        built = world.host.create_dom0less_domain()
        world.control.set_handle(built.domid, bytes(range(16)))
        outcome = world.introducer().reconcile()
        assert (outcome.introduced, outcome.failed) == ([], [])
        assert not world.store.exists("/local/domain/1")
        assert world.control.hvm_param(built.domid, HvmParam.STORE_PFN) == NO_PFN
        built.crash("as told")
        world.introducer().reconcile()
        assert len(world.control.domains()) == 2


CALLS = ("raise_max_memory", "populate_page", "seed_grant", "set_hvm_param", "set_handle")


class _CutOffError(Exception):
    """The process is killed here."""


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("call", CALLS)
def test_a_successor_finishes_what_was_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, when: str
) -> None:
    with open_world(tmp_path) as world:
        world.host.create_dom0less_domain(vcpus=2)
        original = getattr(world.control, call)

        def cut_off(*arguments: object) -> None:
            if when == "after":
                original(*arguments)
            raise _CutOffError

        with monkeypatch.context() as patch:
            patch.setattr(world.control, call, cut_off)
            with pytest.raises(_CutOffError):
                world.introducer(plan()).reconcile()
        assert world.introducer(plan()).reconcile().introduced == [1]
        assert world.rings.connected == {1: 1}
        info = world.control.domains()[1]
        assert info.handle == UUID(world.store.read("/local/domain/1/vm").removeprefix("/vm/")).bytes
        assert world.introducer(plan()).reconcile().introduced == []


@pytest.mark.parametrize("call", ["hvm_param", *CALLS])
def test_a_domain_that_dies_while_it_is_introduced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    with open_world(tmp_path) as world:
        world.host.create_dom0less_domain()
        world.host.create_dom0less_domain()
        original = getattr(world.control, call)

        def die_first(domid: DomId, *arguments: object) -> object:
            if domid == 1:
                world.host.destroy_domain(domid)
                monkeypatch.setattr(world.control, call, original)
            return original(domid, *arguments)

        monkeypatch.setattr(world.control, call, die_first)
        outcome = world.introducer().reconcile()
        assert (outcome.failed, outcome.introduced) == ([1], [2])
        after = world.introducer().reconcile()
        assert (after.failed, after.introduced) == ([], [])
        assert not world.store.exists("/local/domain/1")
        assert world.store.directory(MARKS) == ["2"]


def _destroy(world: World) -> None:
    world.host.destroy_domain(DomId(1))


def _crash(world: World) -> None:
    domain = world.host.domain(DomId(1))
    assert domain is not None
    domain.crash("as told")


def test_backends_are_told_to_let_go_of_a_dying_domain(tmp_path: Path) -> None:
    with open_world(tmp_path) as world:
        world.host.create_dom0less_domain()
        introducer = world.introducer(plan())
        introducer.reconcile()
        memory = world.hypervisor.open_foreign_memory(DomId(1))
        with memory.map_frames(DomId(1), [STORE_GFN], writable=True)[0]:
            _destroy(world)
            assert introducer.reconcile().gone == []
            assert not world.store.exists(BACKEND)
        assert introducer.reconcile().gone == [1]


@pytest.mark.parametrize("end", [_destroy, _crash])
def test_nothing_is_left_of_a_domain_that_ended(tmp_path: Path, end: Callable[[World], None]) -> None:
    with open_world(tmp_path) as world:
        world.host.create_dom0less_domain()
        introducer = world.introducer(plan())
        introducer.reconcile()
        vm = world.store.read("/local/domain/1/vm")
        end(world)
        introducer.reconcile()
        introducer.reconcile()
        assert len(world.control.domains()) == 1
        for path in ("/local/domain/1", vm, BACKEND, f"{MARKS}/1"):
            assert not world.store.exists(path), path
        assert not world.store.is_domain_introduced(1)


def test_a_stopped_domain_can_be_kept(tmp_path: Path) -> None:
    with open_world(tmp_path) as world:
        world.host.create_dom0less_domain()
        introducer = world.introducer(plan(), OnStop.KEEP)
        introducer.reconcile()
        _crash(world)
        introducer.reconcile()
        assert world.control.domains()[1].is_shutdown
        assert world.store.exists(BACKEND)


def test_another_domain_under_the_number_of_a_dead_one(tmp_path: Path) -> None:
    with open_world(tmp_path) as world:
        world.host.create_dom0less_domain()
        introducer = world.introducer()
        introducer.reconcile()
        former = world.store.read("/local/domain/1/vm")
        world.host.destroy_domain(DomId(1))
        successor = world.host.create_domain(domid=DomId(1))
        world.control.set_handle(successor.domid, bytes(range(16)))
        outcome = introducer.reconcile()
        assert (outcome.gone, outcome.introduced) == ([1], [])
        assert not world.store.exists(former)


@pytest.mark.parametrize(("has_plan", "is_successor"), [(True, False), (True, True), (False, False)])
def test_a_store_that_came_back_empty_is_filled_again(tmp_path: Path, has_plan: bool, is_successor: bool) -> None:
    with open_world(tmp_path) as world:
        world.host.create_dom0less_domain()
        introducer = world.introducer(plan() if has_plan else None)
        introducer.reconcile()
        vm = world.store.read("/local/domain/1/vm")
        for path in ("/local/domain/0", "/local/domain/1", vm, "/tool/xenvirtio"):
            world.store.rm(path)
        world.service.call(lambda server: server.domains.forget(1))
        if is_successor:
            introducer = world.introducer(plan() if has_plan else None)
        assert introducer.reconcile().introduced == [1]
        assert world.store.read("/local/domain/1/vm") == vm
        assert world.store.read("/local/domain/0/name") == "Domain-0"


def test_spoilt_marks_are_none(tmp_path: Path) -> None:
    with open_world(tmp_path) as world:
        for name, value in (("x", "y"), ("1", "no uuid"), ("007", "0" * 32), ("9" * 60, "0" * 32)):
            world.store.write(f"{MARKS}/{name}", value)
        world.host.create_dom0less_domain()
        assert world.introducer().reconcile().introduced == [1]


def test_a_failing_domain_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with open_world(tmp_path) as world:
        world.host.create_dom0less_domain()

        def refuse(*arguments: object) -> None:
            raise HypervisorError("seed_grant", 13, domid=1)

        monkeypatch.setattr(world.control, "seed_grant", refuse)
        introducer: Introducer = world.introducer()
        for _ in range(3):
            assert introducer.reconcile().failed == [1]
        assert [record.message for record in caplog.records if "not introduced" in record.message] == [
            "domain 1 not introduced: seed_grant for domain 1: EACCES (Permission denied)"
        ]
