"""Virtio block device (VIRTIO 1.4, 5.2) on a disk of the host."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from xenvirtio.devices.block.config import CONFIG_BYTES, WRITEBACK_OFFSET, BlockConfig
from xenvirtio.devices.block.engine import BlockEngine
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
    ID_BYTES,
    MAX_DISCARD_SECTORS,
    MAX_RANGES,
    MAX_WRITE_ZEROES_SECTORS,
    SECTOR_BYTES,
)
from xenvirtio.errors import ConfigurationError
from xenvirtio.memory.guest_memory import GuestMemory
from xenvirtio.virtio.device import DeviceType
from xenvirtio.virtqueue.batch import ChainBatch

SIZE_MAX = 1 << 20
"""Longest buffer a driver shall use. Longer ones are served; with grants each takes as many consecutive references."""

QUEUE_SIZE_MAX = 1024
QUEUES_MAX = 64
SETTINGS_VALID = 0x100
"""In `driver_settings`: the driver has chosen a cache mode, which is bit 0."""
"""Each queue costs a thread and an arena."""


class DiskResource(Protocol):
    """What the host provides under the device: open descriptors and what is known about them.

    `buffered_fd` is `fd`, or the same disk without O_DIRECT where `direct_alignment` (bytes) is not 0.
    """

    @property
    def fd(self) -> int: ...
    @property
    def buffered_fd(self) -> int: ...
    @property
    def direct_alignment(self) -> int: ...
    @property
    def is_block_device(self) -> bool: ...
    @property
    def read_only(self) -> bool: ...
    @property
    def size_bytes(self) -> int: ...
    @property
    def block_size(self) -> int: ...
    @property
    def physical_block_size(self) -> int: ...
    @property
    def can_discard(self) -> bool: ...
    def refresh_size(self) -> int:
        """Look how large the disk is now; return and keep it as `size_bytes`."""
        ...

    def close(self) -> None: ...


class BlockDevice:
    """One disk for one guest. The device owns `resource` and closes it.

    `writeback` is the cache mode after a reset: with False a write is durable when it completes, until a driver with
    CONFIG_WCE asks otherwise. A driver that did not negotiate FLUSH always gets durable writes.

    Raises:
        ConfigurationError: an argument that no driver could work with; named after the configuration key.
    """

    device_type = DeviceType.BLOCK
    config_bytes = CONFIG_BYTES

    def __init__(
        self,
        resource: DiskResource,
        *,
        serial: str = "",
        queues: int = 1,
        queue_size: int = 256,
        writeback: bool = True,
        block_size: int | None = None,
    ) -> None:
        if not serial.isascii() or len(serial) > ID_BYTES or "\0" in serial:
            raise ConfigurationError("serial", f"{serial!r} is not up to {ID_BYTES} ASCII characters")
        if not 1 <= queues <= QUEUES_MAX:
            raise ConfigurationError("queues", f"{queues} is not 1..{QUEUES_MAX}")
        if not 4 <= queue_size <= QUEUE_SIZE_MAX or queue_size & (queue_size - 1):
            raise ConfigurationError("queue_size", f"{queue_size} is not a power of two from 4 to {QUEUE_SIZE_MAX}")
        self._block_size = resource.block_size if block_size is None else block_size
        if self._block_size not in (512, 1024, 2048, 4096):  # Linux takes no blocks larger than its page
            raise ConfigurationError("block_size", f"{self._block_size} is not one of 512, 1024, 2048, 4096")
        self.queue_sizes: Sequence[int] = (queue_size,) * queues
        self._resource = resource
        self._writeback_after_reset = writeback
        self._writeback = writeback
        self._settings = 0
        self._negotiated = 0
        self._notify: Callable[[], None] | None = None
        self.engines = tuple(
            BlockEngine(
                resource.fd,
                resource.buffered_fd,
                direct_alignment=resource.direct_alignment,
                is_block_device=resource.is_block_device,
                queue_index=index,
                serial=serial.encode("ascii"),
            )
            for index in range(queues)
        )
        """One per queue; their counters are plain attributes."""
        self.features = self._offered_features()
        for engine in self.engines:
            engine.read_only = resource.read_only
            engine.may_unmap = resource.can_discard
            engine.capacity_sectors = self._capacity_sectors()

    def _offered_features(self) -> int:
        features = F_SIZE_MAX | F_SEG_MAX | F_BLK_SIZE | F_TOPOLOGY | F_FLUSH | F_CONFIG_WCE
        if len(self.engines) > 1:
            features |= F_MQ
        if self._resource.read_only:
            return features | F_RO
        if self._resource.can_discard:
            features |= F_DISCARD
        return features | F_WRITE_ZEROES

    def _capacity_sectors(self) -> int:
        return self._resource.size_bytes // SECTOR_BYTES

    @property
    def config(self) -> BlockConfig:
        blocks_per_physical = max(self._resource.physical_block_size // self._block_size, 1)
        can_discard = bool(self.features & F_DISCARD)
        can_zero = bool(self.features & F_WRITE_ZEROES)
        return BlockConfig(
            capacity=self.engines[0].capacity_sectors,
            size_max=SIZE_MAX,
            seg_max=self.queue_sizes[0] - 2,  # header and status take a descriptor each
            blk_size=self._block_size,
            physical_block_exp=blocks_per_physical.bit_length() - 1,
            alignment_offset=0,
            min_io_size=blocks_per_physical,
            opt_io_size=0,
            writeback=int(self._writeback),
            num_queues=len(self.engines) if self.features & F_MQ else 0,
            max_discard_sectors=MAX_DISCARD_SECTORS if can_discard else 0,
            max_discard_seg=MAX_RANGES if can_discard else 0,
            discard_sector_alignment=self._resource.physical_block_size // SECTOR_BYTES if can_discard else 0,
            max_write_zeroes_sectors=MAX_WRITE_ZEROES_SECTORS if can_zero else 0,
            max_write_zeroes_seg=MAX_RANGES if can_zero else 0,
            write_zeroes_may_unmap=int(can_zero and can_discard),
        )

    def read_config(self, offset: int, length_bytes: int) -> bytes:
        return self.config.encode()[offset : offset + length_bytes].ljust(length_bytes, b"\0")

    def write_config(self, offset: int, data: bytes) -> None:
        """Take the cache mode; everything else is read-only."""
        if self._negotiated & F_CONFIG_WCE and offset <= WRITEBACK_OFFSET < offset + len(data):
            self._writeback = data[WRITEBACK_OFFSET - offset] != 0
            self._settings = SETTINGS_VALID | self._writeback
            self._apply_cache_mode()

    @property
    def driver_settings(self) -> int:
        return self._settings

    def restore_settings(self, settings: int) -> None:
        if settings & SETTINGS_VALID:
            self._settings = settings
            self._writeback = bool(settings & 1)
            self._apply_cache_mode()

    def on_config_change(self, notify: Callable[[], None] | None) -> None:
        self._notify = notify

    def resize(self) -> int:
        """Take over a changed size of the resource and tell the driver; return the capacity in sectors. Any thread."""
        before = self.engines[0].capacity_sectors
        self._resource.refresh_size()
        capacity = self._capacity_sectors()
        for engine in self.engines:
            engine.capacity_sectors = capacity
        if capacity != before and self._notify is not None:
            self._notify()
        return capacity

    def negotiate(self, features: int) -> None:
        """Take the features. A driver without FLUSH reads `writeback` as 0 from here on.

        Source: VIRTIO 1.4, 5.2.5.2.
        """
        self._negotiated = features
        if not features & F_FLUSH:
            self._writeback = False
        self._apply_cache_mode()
        for engine in self.engines:
            engine.discard = bool(features & F_DISCARD)
            engine.write_zeroes = bool(features & F_WRITE_ZEROES)

    def activate(self, features: int) -> None:
        """As `negotiate`, for a driver whose transport has no step before this one."""
        self.negotiate(features)

    def _apply_cache_mode(self) -> None:
        """Without FLUSH a driver has no way to make a write durable afterwards, whatever it puts in `writeback`."""
        for engine in self.engines:
            engine.writethrough = not (self._negotiated & F_FLUSH and self._writeback)

    def process(self, queue_index: int, batch: ChainBatch, memory: GuestMemory) -> None:
        self.engines[queue_index].process(batch, memory)

    def reset(self) -> None:
        self._writeback = self._writeback_after_reset
        self._settings = 0
        self._negotiated = 0
        self._apply_cache_mode()

    def close(self) -> None:
        self._resource.close()
