"""Device requirements of VIRTIO 1.4, 5.2 (Block Device), by their ids in virtio-1.4-cs01.tsv."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.devices.block.rig import MIB, Rig, pattern, ranges
from xenvirtio.devices.block.config import CONFIG_BYTES, WRITEBACK_OFFSET
from xenvirtio.devices.block.device import BlockDevice
from xenvirtio.devices.block.engine import BlockEngine
from xenvirtio.devices.block.layout import (
    F_CONFIG_WCE,
    F_DISCARD,
    F_FLUSH,
    F_RO,
    F_WRITE_ZEROES,
    S_IOERR,
    S_OK,
    S_UNSUPP,
    T_DISCARD,
    T_OUT,
    T_WRITE_ZEROES,
)
from xenvirtio.resources.file import FileResource
from xenvirtio.resources.memory import open_memory_disk

F_LIFETIME = 1 << 15
F_ZONED = 1 << 17
T_SECURE_ERASE = 14
ZONE_REQUESTS = (15, 16, 18, 20, 22, 24, 26)


@pytest.fixture(params=[False, True], ids=["writable", "read-only"])
def disk(request: pytest.FixtureRequest) -> Iterator[FileResource]:
    resource = open_memory_disk(MIB, read_only=request.param)
    yield resource
    resource.close()


def status_of(rig: Rig, kind: int, payload: bytes) -> int:
    return rig.driver.complete(rig.driver.submit(kind, payload=payload)).status


@pytest.mark.spec("blk.1.1", "blk.1.2")
@pytest.mark.parametrize("writeback", [False, True])
def test_flush_is_always_offered(disk: FileResource, writeback: bool) -> None:
    assert BlockDevice(disk, writeback=writeback).features & F_FLUSH


@pytest.mark.spec("blk.1.3")
def test_writeback_starts_at_0_without_flush(disk: FileResource) -> None:
    device = BlockDevice(disk, writeback=True)
    device.negotiate(F_CONFIG_WCE)
    assert device.read_config(WRITEBACK_OFFSET, 1) == b"\0"


@pytest.mark.spec("blk.1.4")
def test_padding_is_0(disk: FileResource) -> None:
    device = BlockDevice(disk, queues=4)
    assert device.read_config(33, 1) == b"\0"
    assert device.read_config(57, 3) == bytes(3)


@pytest.mark.spec("blk.1.5", "blk.1.7")
def test_zones_are_neither_offered_nor_described(disk: FileResource) -> None:
    device = BlockDevice(disk)
    assert not device.features & F_ZONED
    assert device.read_config(CONFIG_BYTES, 64) == bytes(64)


@pytest.mark.spec("blk.2.1")
def test_a_changed_capacity_is_announced() -> None:
    rig = Rig(open_memory_disk(MIB))
    seen: list[int] = []
    rig.device.on_config_change(lambda: seen.append(rig.config.capacity))
    os.ftruncate(rig.resource.fd, 2 * MIB)
    rig.device.resize()
    os.ftruncate(rig.resource.fd, MIB)
    rig.device.resize()
    assert seen == [4096, 2048]


@pytest.mark.spec("blk.2.2", "blk.2.3")
@pytest.mark.parametrize("accepted", [F_RO, 0])
def test_writes_to_a_read_only_disk_fail_and_write_nothing(accepted: int) -> None:
    resource = open_memory_disk(MIB, read_only=True)  # the descriptor itself could be written
    rig = Rig(resource, features=F_FLUSH | accepted)
    assert rig.device.features & F_RO
    assert status_of(rig, T_OUT, pattern(4096)) == S_IOERR
    assert rig.disk() == bytes(MIB)


@pytest.mark.spec("blk.2.4")
@pytest.mark.parametrize("flags", [1 << bit for bit in range(1, 32)])
def test_an_unknown_flag_is_unsupported(flags: int) -> None:
    rig = Rig()
    payload = ranges((0, 1, 0), (8, 1, flags))
    assert status_of(rig, T_DISCARD, payload) == S_UNSUPP
    assert status_of(rig, T_WRITE_ZEROES, payload) == S_UNSUPP
    assert status_of(rig, T_SECURE_ERASE, payload) == S_UNSUPP


@pytest.mark.spec("blk.2.5")
def test_unmap_is_unsupported_in_a_discard() -> None:
    assert status_of(Rig(), T_DISCARD, ranges((0, 1, 1))) == S_UNSUPP


@pytest.mark.spec("blk.2.6")
@pytest.mark.parametrize("unmap", [False, True])
@pytest.mark.parametrize(("first", "count"), [(0, 2048), (1, 1), (7, 9), (2047, 1)])
def test_zeroed_sectors_read_as_zeros(unmap: bool, first: int, count: int) -> None:
    rig = Rig()
    rig.driver.write(0, b"\xaa" * MIB)
    assert rig.driver.write_zeroes([(first, count)], unmap=unmap).status == S_OK
    assert rig.driver.read(first, count * 512).data == bytes(count * 512)
    assert rig.disk().count(b"\xaa") == MIB - count * 512


@pytest.mark.spec("blk.2.7")
@pytest.mark.parametrize("can_discard", [False, True])
def test_may_unmap_says_whether_zeroing_may_deallocate(can_discard: bool) -> None:
    resource = open_memory_disk(MIB)
    resource.can_discard = can_discard
    device = BlockDevice(resource)
    assert bool(device.features & F_DISCARD) == can_discard
    assert device.config.write_zeroes_may_unmap == can_discard
    rig = Rig(resource, features=F_WRITE_ZEROES | F_FLUSH)
    rig.driver.write(0, b"\xaa" * MIB)
    before = os.fstat(resource.fd).st_blocks
    rig.driver.write_zeroes([(0, 2048)], unmap=True)
    assert (os.fstat(resource.fd).st_blocks < before) == can_discard


@pytest.mark.spec("blk.2.9")
@pytest.mark.parametrize(
    ("features", "writeback", "write_status"),
    [
        (0, 1, S_IOERR),
        (F_CONFIG_WCE, 0, S_IOERR),
        (F_CONFIG_WCE | F_FLUSH, 0, S_IOERR),
        (F_CONFIG_WCE | F_FLUSH, 1, S_OK),
        (F_FLUSH, 1, S_OK),
    ],
)
def test_stable_writes_are_committed_before_they_are_reported(features: int, writeback: int, write_status: int) -> None:
    """On a disk that takes writes but cannot commit them (/dev/null), none of those is reported as done."""
    rig = Rig()
    null = os.open("/dev/null", os.O_RDWR)
    try:
        rig.device.engines = (BlockEngine(null, null),)
        rig.engine.capacity_sectors = 8
        rig.device.reset()
        rig.device.negotiate(features)
        rig.device.write_config(WRITEBACK_OFFSET, bytes([writeback]))
        rig.device.activate(features)
        assert rig.driver.write(0, bytes(512)).status == write_status
        assert rig.driver.flush().status == S_IOERR
    finally:
        os.close(null)


@pytest.mark.spec("blk.2.9")
@pytest.mark.parametrize("writeback", [False, True])
def test_stable_writes_are_synced(writeback: bool) -> None:
    rig = Rig(writeback=writeback)
    for n in range(3):
        rig.driver.write(n, bytes(512))
    assert rig.engine.syncs == (0 if writeback else 3)
    rig.driver.flush()
    assert rig.engine.syncs == (1 if writeback else 4)


@pytest.mark.spec("blk.2.11")
def test_lifetime_metrics_are_not_offered(disk: FileResource) -> None:
    assert not BlockDevice(disk).features & F_LIFETIME


@pytest.mark.spec("blk.2.13")
@pytest.mark.parametrize("kind", ZONE_REQUESTS)
def test_zone_requests_are_unsupported(kind: int) -> None:
    rig = Rig()
    assert rig.driver.complete(rig.driver.submit(kind)).status == S_UNSUPP
    assert rig.driver.complete(rig.driver.submit(kind, reply_bytes=512)).status == S_UNSUPP
    assert status_of(rig, kind, pattern(512)) == S_UNSUPP
    assert rig.disk() == bytes(MIB)
