"""A block device, its driver and the guest memory between them, in one thread: a kick serves the queue at once."""

from __future__ import annotations

import ctypes
import struct

from xenvirtio.devices.block.config import BlockConfig
from xenvirtio.devices.block.device import BlockDevice
from xenvirtio.devices.block.driver import BlockDriver
from xenvirtio.devices.block.engine import BlockEngine
from xenvirtio.errors import HypervisorError
from xenvirtio.ids import GRANT_BIT, PAGE_SIZE, DomId
from xenvirtio.memory.buffer import HostBuffer
from xenvirtio.memory.grants import GrantMemory
from xenvirtio.memory.guest_memory import GuestMemory
from xenvirtio.memory.regions import RegionMemory, RegionSource, RegionTable
from xenvirtio.resources.file import FileResource
from xenvirtio.resources.memory import open_memory_disk
from xenvirtio.virtqueue.batch import ChainBatch
from xenvirtio.virtqueue.driver import DriverQueue
from xenvirtio.virtqueue.layout import avail_bytes, desc_bytes
from xenvirtio.virtqueue.split import SplitQueue
from xenvirtio.xen.capabilities import Mapping

REGION_BASE = 0x4000_0000
FIRST_REFERENCE = 8
GUEST_DOMID = 3
MIB = 1 << 20


class PageGrants:
    """Grants a block of host memory page by page: reference FIRST_REFERENCE + n is page n."""

    def __init__(self, base: int, pages: int) -> None:
        self._base = base
        self._pages = pages
        self.revoked: set[int] = set()
        self.read_only: set[int] = set()
        self.fail_next = 0

    def copy(self, segments_address: int, count: int) -> None:
        if self.fail_next:
            self.fail_next -= 1
            raise HypervisorError("GRANT_COPY", 22)
        for segment in range(segments_address, segments_address + 24 * count, 24):
            status = self._copy_one(ctypes.string_at(segment, 24))
            ctypes.c_int16.from_address(segment + 20).value = status

    def _copy_one(self, segment: bytes) -> int:
        source, destination, length, flags, _ = struct.unpack("<8s8sHHi", segment)
        to_guest = flags == 2
        reference, offset, domid = struct.unpack("<IHH", destination if to_guest else source)
        (host,) = struct.unpack("<Q", source if to_guest else destination)
        page = reference - FIRST_REFERENCE
        assert offset + length <= PAGE_SIZE
        assert domid == GUEST_DOMID
        if not 0 <= page < self._pages or reference in self.revoked:
            return -3
        if to_guest and reference in self.read_only:
            return -8
        guest = self._base + page * PAGE_SIZE + offset
        ctypes.memmove(guest if to_guest else host, host if to_guest else guest, length)
        return 0

    def map(self, domid: DomId, references: object, *, writable: bool) -> Mapping:
        raise AssertionError("data goes by copy, nothing is mapped")

    def close(self) -> None:
        pass


class Guest:
    """Guest memory reached through regions or through grants, with a bump allocator."""

    def __init__(self, *, granted: bool = False, size_bytes: int = 16 * MIB) -> None:
        self.buffer = HostBuffer(size_bytes)
        self.grants = PageGrants(self.buffer.address, size_bytes // PAGE_SIZE)
        self.base = GRANT_BIT | FIRST_REFERENCE * PAGE_SIZE if granted else REGION_BASE
        self.granted = GrantMemory(self.grants, GUEST_DOMID) if granted else None
        self._used = 0

    def memory(self) -> GuestMemory:
        if self.granted is not None:
            return self.granted
        half = self.buffer.length_bytes // 2  # two regions: buffers may lie across
        return RegionMemory(
            RegionSource(
                RegionTable(
                    [
                        (self.base, half, self.buffer.address, True),
                        (self.base + half, half, self.buffer.address + half, True),
                    ]
                )
            )
        )

    def allocate(self, length_bytes: int) -> tuple[int, int]:
        offset = self._used
        self._used += -(-length_bytes // PAGE_SIZE) * PAGE_SIZE
        assert self._used <= self.buffer.length_bytes
        return self.base + offset, self.buffer.address + offset

    def put(self, data: bytes, *, shift: int = 0) -> int:
        """Place data in a page of its own; return its DMA address."""
        dma, host = self.allocate(shift + len(data))
        ctypes.memmove(host + shift, data, len(data))
        return dma + shift

    def get(self, dma: int, length_bytes: int) -> bytes:
        return ctypes.string_at(self.buffer.address + dma - self.base, length_bytes)


class Rig:
    """`batches` counts how often the device was asked; the queue is drained at each kick."""

    def __init__(
        self,
        resource: FileResource | None = None,
        *,
        granted: bool = False,
        features: int | None = None,
        arena_bytes: int | None = None,
        queue_size: int = 256,
        segment_bytes: int = 1 << 20,
        indirect: bool = False,
        guest_bytes: int = 16 * MIB,
        writeback: bool = True,
        serial: str = "",
    ) -> None:
        self.resource = resource if resource is not None else open_memory_disk(MIB)
        self.device = BlockDevice(self.resource, serial=serial, queue_size=queue_size, writeback=writeback)
        if arena_bytes is not None:
            engine = BlockEngine(
                self.resource.fd,
                self.resource.buffered_fd,
                direct_alignment=self.resource.direct_alignment,
                serial=serial.encode(),
                arena_bytes=arena_bytes,
            )
            engine.read_only = self.resource.read_only
            engine.may_unmap = self.resource.can_discard
            engine.capacity_sectors = self.device.config.capacity
            self.device.engines = (engine,)
        self.device.activate(self.device.features if features is None else features)
        self.guest = Guest(granted=granted, size_bytes=guest_bytes)
        self.memory = self.guest.memory()
        self._rings = HostBuffer(desc_bytes(queue_size) + avail_bytes(queue_size) + 4 + 8 * queue_size + 8)
        desc = self._rings.address
        avail = desc + desc_bytes(queue_size)
        used = (avail + avail_bytes(queue_size) + 3) // 4 * 4
        self.queue = DriverQueue(queue_size, desc, avail, used)
        self.device_queue = SplitQueue(queue_size, desc, avail, used, self.memory, indirect=True)
        self.batch = ChainBatch(segment_capacity=4096)
        self.batches = 0
        self.driver = BlockDriver(self.queue, self.guest, self.serve, segment_bytes=segment_bytes, indirect=indirect)

    @property
    def engine(self) -> BlockEngine:
        return self.device.engines[0]

    @property
    def config(self) -> BlockConfig:
        return BlockConfig.parse(self.device.read_config(0, self.device.config_bytes))

    def serve(self) -> None:
        while self.device_queue.take(self.batch):
            self.batches += 1
            self.device.process(0, self.batch, self.memory)
            self.device_queue.complete(self.batch)
            self.device_queue.publish()

    def request(self, readable: list[tuple[int, int]], writable: list[tuple[int, int]]) -> int:
        """Send one chain as it is; return the used length."""
        self.queue.offer(readable, writable)
        self.serve()
        ((_, written),) = self.queue.collect()
        return written

    def disk(self) -> bytes:
        with open(f"/proc/self/fd/{self.resource.buffered_fd}", "rb") as file:
            return file.read()


def header(kind: int, sector: int = 0) -> bytes:
    return struct.pack("<IIQ", kind, 0, sector)


def ranges(*entries: tuple[int, int, int]) -> bytes:
    """Discard or write-zeroes ranges: (first sector, sectors, flags)."""
    return b"".join(struct.pack("<QII", *entry) for entry in entries)


def pattern(length_bytes: int, seed: int = 1) -> bytes:
    return bytes((seed * 131 + n * 7 + n // 251) & 0xFF for n in range(length_bytes))
