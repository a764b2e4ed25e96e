"""What holds for a directory over every channel."""

from __future__ import annotations

import select
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from xenvirtio.errors import ConfigurationError
from xenvirtio.metadata.directory import FIELDS_MAX, NAME_MAX, VALUE_MAX, DeviceRecord, Directory, check_record

from .worlds import ROOT, WORLDS, World


@pytest.fixture(params=sorted(WORLDS))
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    with WORLDS[request.param](tmp_path) as world:
        yield world


def eventually(directory: Directory, is_so: Callable[[list[DeviceRecord]], bool]) -> list[DeviceRecord]:
    """Find, again after each change, until something holds."""
    deadline_s = time.monotonic() + 20
    while not is_so(found := directory.find()):
        assert time.monotonic() < deadline_s, found
        directory.wait_changed(1)
    return found


def named(records: list[DeviceRecord], name: str) -> list[DeviceRecord]:
    return [record for record in records if record.name == name]


def settle(directory: Directory) -> None:
    """Take in what is under way, until nothing changes any more."""
    directory.find()
    deadline_s = time.monotonic() + 20
    while directory.wait_changed(0.3):
        directory.find()
        assert time.monotonic() < deadline_s


def test_a_backend_finds_what_a_frontend_registers(world: World) -> None:
    world.register_root()
    found = named(world.backend.find(), "root")
    assert found == [DeviceRecord("root", "block", world.domid, ROOT)]
    assert named(world.frontend.find(), "root") == found


def test_registering_again_changes_nothing_or_replaces(world: World) -> None:
    world.register_root()
    world.register_root()
    assert len(named(world.backend.find(), "root")) == 1
    if not world.is_static:
        world.register_root({"base": "0x3000000"})
        (record,) = named(world.backend.find(), "root")
        assert record.fields == {"base": "0x3000000"}


def test_finding_by_type(world: World) -> None:
    world.register_root()
    assert [r.name for r in world.backend.find(type="block") if r.name == "root"] == ["root"]
    assert world.backend.find(type="net") == []


def test_the_order_is_by_domid_and_name(world: World) -> None:
    if not world.is_static:
        for name in ("b", "a", "c"):
            world.frontend.register(name, "block", {})
    found = world.backend.find()
    assert [record.name for record in found] == sorted(record.name for record in found)
    assert len(found) == 3


def test_withdrawing(world: World) -> None:
    world.frontend.withdraw("never-there")
    if world.is_static:
        return
    world.register_root()
    world.frontend.withdraw("root")
    assert world.backend.find() == []


def test_changes_wake_who_waits(world: World) -> None:
    settle(world.backend)
    assert not world.backend.wait_changed(0.05)
    if world.is_static:
        return
    world.register_root()
    assert world.backend.wait_changed(20)
    poll = select.poll()
    poll.register(world.backend.fileno(), select.POLLIN)
    world.frontend.withdraw("root")
    assert poll.poll(20_000)
    eventually(world.backend, lambda found: found == [])


def test_records_end_with_their_domain(world: World) -> None:
    if world.is_static:
        pytest.skip("a static system has no domains that end")
    world.register_root()
    assert world.backend.find()
    world.end_frontend()
    eventually(world.backend, lambda found: found == [])


def test_a_backend_registers_too(world: World) -> None:
    if world.is_static:
        with pytest.raises(ConfigurationError, match="this domain is its backend"):
            world.backend.register("root", "block", {})
        return
    world.backend.register("service", "scmi", {"agents": "4"})
    assert named(world.backend.find(), "service")[0].domid == 0


@pytest.mark.parametrize(
    ("name", "type", "fields"),
    [
        ("", "block", {}),
        ("a" * (NAME_MAX + 1), "block", {}),
        ("../../0/name", "block", {}),
        (".", "block", {}),
        ("a\0b", "block", {}),
        ("root", "", {}),
        ("root", "block/x", {}),
        ("root", "block", {"a/b": "1"}),
        ("root", "block", {"": "1"}),
        ("root", "block", {"key": "x" * (VALUE_MAX + 1)}),
        ("root", "block", {"key": "ü" * (VALUE_MAX // 2 + 1)}),
        ("root", "block", {"key": "two\nlines"}),
        ("root", "block", {"key": "\ud800"}),
        ("root", "block", {f"key{n}": "" for n in range(FIELDS_MAX + 1)}),
    ],
)
def test_what_no_channel_carries_is_refused(world: World, name: str, type: str, fields: dict[str, str]) -> None:
    with pytest.raises(ConfigurationError, match="metadata: "):
        world.frontend.register(name, type, fields)


def test_the_largest_record_goes_through(world: World) -> None:
    if world.is_static:
        return
    fields = {f"key{n}{'k' * 50}": "ü" * (VALUE_MAX // 2) for n in range(FIELDS_MAX)}
    name = "n" * NAME_MAX
    check_record(name, "t" * NAME_MAX, fields)
    world.frontend.register(name, "t" * NAME_MAX, fields)
    assert world.backend.find() == [DeviceRecord(name, "t" * NAME_MAX, world.domid, fields)]


def test_closing_twice(world: World) -> None:
    world.frontend.close()
    world.frontend.close()
