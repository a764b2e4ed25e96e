"""Records in XenStore that another domain wrote to deceive, to fill or to confuse."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from xenvirtio.errors import XenStoreError
from xenvirtio.ids import DomId
from xenvirtio.metadata.directory import RECORDS_MAX
from xenvirtio.metadata.xenstore import FOLDER, XenStoreDirectory
from xenvirtio.xenstore.client import XenStoreClient
from xenvirtio.xenstore.serve import XenStoreService
from xenvirtio.xenstore.server import XenStoreServer

from .worlds import World, xenstore_world


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with xenstore_world(tmp_path) as world:
        yield world


@pytest.fixture
def hostile(world: World, tmp_path: Path) -> Iterator[XenStoreClient]:
    """The frontend's domain, writing what it likes."""
    with XenStoreClient.at(tmp_path / "dom1") as client:
        client.mkdir(FOLDER)
        yield client


@pytest.fixture
def toolstack(world: World, tmp_path: Path) -> Iterator[XenStoreClient]:
    with XenStoreClient.at(tmp_path / "dom0") as client:
        yield client


def test_a_named_peer_may_read_and_nobody_else(tmp_path: Path) -> None:
    with xenstore_world(tmp_path, privileged_backend=False) as world:
        world.register_root()
        assert [(r.domid, r.name) for r in world.backend.find()] == [(1, "root")]
        world.frontend.withdraw("root")
        assert world.backend.wait_changed(5)
        assert world.backend.find() == []
    (tmp_path / "second").mkdir()
    with xenstore_world(tmp_path / "second") as world:  # names dom0 alone
        world.register_root()
        stranger = XenStoreDirectory(XenStoreClient.at(tmp_path / "second/dom2"), [DomId(1)])
        assert stranger.find() == []
        stranger.close()


def test_who_may_read_follows_the_last_registration(world: World, hostile: XenStoreClient) -> None:
    world.register_root()
    assert hostile.get_permissions(f"{FOLDER}/root/type") == ["n1", "r0"]


def test_a_record_in_anothers_home_is_not_believed(world: World, toolstack: XenStoreClient) -> None:
    toolstack.write(f"/local/domain/1/{FOLDER}/fake/type", "block")  # owned by domain 0 once it says so
    toolstack.set_permissions(f"/local/domain/1/{FOLDER}/fake/type", ["n2", "r0"])
    assert world.backend.find() == []


def test_what_a_record_says_of_its_domain_is_only_a_field(world: World) -> None:
    world.frontend.register("root", "block", {"domid": "0"})
    (record,) = world.backend.find()
    assert record.domid == 1


@pytest.mark.parametrize(
    "nodes",
    [
        {"x/type": b"bl\x00ck"},
        {"x/type": b"\xff\xfe"},
        {"x/type": b"block", "x/field/key": b"v\nw"},
        {"x/type": b"block", "x/field/key": b"v" * 513},
        {"x/type": b"block", "x/field/@key": b""},
        {"x/type": b"block", **{f"x/field/k{n}": b"" for n in range(33)}},
        {"-/type": b"block"},
        {"y" * 64 + "/type": b"block"},
        {"x/field/key": b"half a record"},
        {"x": b"no record at all"},
    ],
)
def test_nonsense_is_left_out_and_the_rest_is_found(
    world: World, hostile: XenStoreClient, nodes: dict[str, bytes], caplog: pytest.LogCaptureFixture
) -> None:
    for path, value in nodes.items():
        hostile.write(f"{FOLDER}/{path}", value)
    world.register_root()
    for _ in range(3):
        assert [record.name for record in world.backend.find()] == ["root"]
    assert len([line for line in caplog.messages if "domain 1" in line]) <= 1


def test_a_domain_with_too_many_records(world: World, hostile: XenStoreClient) -> None:
    for number in range(RECORDS_MAX + 10):
        hostile.write(f"{FOLDER}/n{number:03d}/type", "block")
    assert len(world.backend.find()) == RECORDS_MAX


def test_no_half_record_is_ever_seen(world: World) -> None:
    """A replacement in one transaction: all of the old one or all of the new one."""
    whole = [{f"k{n}": str(turn) for n in range(10)} for turn in (0, 1)]
    ended = threading.Event()

    def write() -> None:
        turn = 0
        while not ended.is_set():
            world.register_root(whole[turn % 2])
            turn += 1

    writer = threading.Thread(target=write)
    writer.start()
    try:
        seen = 0
        for _ in range(200):
            for record in world.backend.find():
                seen += 1
                assert record.fields in whole
        assert seen
    finally:
        ended.set()
        writer.join()


def test_a_domain_that_comes_later_is_found(world: World, toolstack: XenStoreClient, tmp_path: Path) -> None:
    assert world.backend.find() == []
    toolstack.write("/local/domain/7/data/xenvirtio/root/type", "block")
    for node in ("", "/root", "/root/type"):
        toolstack.set_permissions(f"/local/domain/7/data/xenvirtio{node}", ["n7"])
    assert [record.domid for record in world.backend.find()] == [7]


def test_without_a_writable_subtree_the_error_says_so(world: World, toolstack: XenStoreClient) -> None:
    toolstack.rm("/local/domain/1/data")
    with pytest.raises(XenStoreError, match="EACCES"):
        world.register_root()


def test_a_server_that_has_forgotten_everything_is_told_again(tmp_path: Path) -> None:
    def serve() -> XenStoreService:
        (tmp_path / "dom0").unlink(missing_ok=True)
        service = XenStoreService(XenStoreServer(time.monotonic))
        service.listen(tmp_path / "dom0")
        service.start()
        return service

    service = serve()
    directory = XenStoreDirectory(XenStoreClient.at(tmp_path / "dom0"))
    directory.register("root", "block", {"irq": "33"})
    directory.register("gone", "block", {})
    directory.withdraw("gone")
    directory.find()
    service.stop()
    service = serve()
    assert directory.wait_changed(20)
    assert [(r.name, r.fields) for r in directory.find()] == [("root", {"irq": "33"})]
    directory.close()
    service.stop()
