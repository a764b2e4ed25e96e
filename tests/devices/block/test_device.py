from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.devices.block.rig import MIB, Rig, pattern
from xenvirtio.devices.block.config import CONFIG_BYTES, WRITEBACK_OFFSET, BlockConfig
from xenvirtio.devices.block.device import BlockDevice
from xenvirtio.devices.block.layout import (
    F_BLK_SIZE,
    F_CONFIG_WCE,
    F_DISCARD,
    F_FLUSH,
    F_MQ,
    F_RO,
    F_SEG_MAX,
    F_SIZE_MAX,
    F_TOPOLOGY,
    F_WRITE_ZEROES,
    S_IOERR,
    S_OK,
)
from xenvirtio.errors import ConfigurationError
from xenvirtio.resources.file import FileResource
from xenvirtio.resources.memory import open_memory_disk
from xenvirtio.virtio.device import Device, DeviceType

ALWAYS = F_SIZE_MAX | F_SEG_MAX | F_BLK_SIZE | F_TOPOLOGY | F_FLUSH | F_CONFIG_WCE


@pytest.fixture
def disk() -> Iterator[FileResource]:
    resource = open_memory_disk(MIB)
    yield resource
    resource.close()


def test_it_is_a_device(disk: FileResource) -> None:
    device: Device = BlockDevice(disk)
    assert device.device_type == DeviceType.BLOCK
    assert device.config_bytes == CONFIG_BYTES == 60


def test_what_a_writable_disk_offers(disk: FileResource) -> None:
    device = BlockDevice(disk)
    assert device.features == ALWAYS | F_WRITE_ZEROES | (F_DISCARD if disk.can_discard else 0)


def test_what_a_read_only_disk_offers() -> None:
    assert BlockDevice(open_memory_disk(MIB, read_only=True)).features == ALWAYS | F_RO


def test_several_queues(disk: FileResource) -> None:
    device = BlockDevice(disk, queues=3, queue_size=64)
    assert device.features & F_MQ
    assert device.config.num_queues == 3
    assert device.queue_sizes == (64, 64, 64)
    assert len(device.engines) == 3


def test_the_configuration_describes_the_disk(disk: FileResource) -> None:
    config = BlockDevice(disk, queue_size=128, block_size=1024).config
    assert (config.capacity, config.blk_size, config.physical_block_exp, config.min_io_size) == (2048, 1024, 2, 4)
    assert config.seg_max == 126
    assert config.write_zeroes_may_unmap == int(disk.can_discard)


def test_reading_past_the_configuration_gives_zeros(disk: FileResource) -> None:
    device = BlockDevice(disk)
    assert device.read_config(56, 8) == device.config.encode()[56:] + bytes(4)
    assert device.read_config(1000, 4) == bytes(4)


@pytest.mark.parametrize(
    "options",
    [
        {"serial": "x" * 21},
        {"serial": "naïve"},
        {"queues": 0},
        {"queues": 65},
        {"queue_size": 100},
        {"queue_size": 2048},
        {"block_size": 8192},
        {"block_size": 500},
    ],
)
def test_a_wrong_option_is_named(disk: FileResource, options: dict[str, int | str]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(options))):
        BlockDevice(disk, **options)  # type: ignore[arg-type]


def test_the_driver_sets_the_cache_mode_and_nothing_else(disk: FileResource) -> None:
    device = BlockDevice(disk)
    before = device.config
    device.write_config(WRITEBACK_OFFSET, b"\0")
    assert device.config == before, "not before CONFIG_WCE is negotiated"
    device.activate(F_FLUSH | F_CONFIG_WCE)
    assert not device.engines[0].writethrough
    device.write_config(0, bytes(CONFIG_BYTES))
    device.write_config(20, b"\1\2\3\4")
    assert device.config.writeback == 0
    assert device.engines[0].writethrough
    assert device.config.capacity == before.capacity
    assert device.config.blk_size == before.blk_size
    device.write_config(WRITEBACK_OFFSET, b"\7")
    assert device.config.writeback == 1
    assert not device.engines[0].writethrough


def test_reset_goes_back_to_the_configured_cache_mode(disk: FileResource) -> None:
    device = BlockDevice(disk, writeback=False)
    device.activate(F_FLUSH | F_CONFIG_WCE)
    device.write_config(WRITEBACK_OFFSET, b"\1")
    device.reset()
    assert device.config.writeback == 0
    assert device.engines[0].writethrough


def test_a_disk_that_grows_is_announced_and_usable() -> None:
    rig = Rig(open_memory_disk(MIB))
    changes: list[int] = []
    rig.device.on_config_change(lambda: changes.append(rig.config.capacity))
    assert rig.device.resize() == 2048
    assert changes == []
    assert rig.driver.write(2048, pattern(512)).status == S_IOERR
    os.ftruncate(rig.resource.fd, 2 * MIB)
    assert rig.device.resize() == 4096
    assert changes == [4096]
    assert rig.driver.write(2048, pattern(512)).status == S_OK


def test_a_disk_that_shrinks_refuses_what_is_gone() -> None:
    rig = Rig(open_memory_disk(MIB))
    os.ftruncate(rig.resource.fd, 512 * 1024 + 100)
    assert rig.device.resize() == 1024
    assert rig.driver.read(1024, 512).status == S_IOERR
    assert rig.driver.write(1024, bytes(512)).status == S_IOERR
    assert rig.driver.read(1023, 512).status == S_OK


def test_nobody_listens_to_changes(disk: FileResource) -> None:
    device = BlockDevice(disk)
    device.on_config_change(None)
    os.ftruncate(disk.fd, 2 * MIB)
    assert device.resize() == 4096
    assert BlockConfig.parse(device.read_config(0, CONFIG_BYTES)).capacity == 4096


def test_close_closes_the_resource() -> None:
    resource = open_memory_disk(MIB)
    fd = resource.fd
    device = BlockDevice(resource)
    device.close()
    device.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
