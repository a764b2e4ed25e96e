"""A disk over virtio-msg, used from a process: probed when needed, probed again whenever the other end starts anew.

    with MsgDisk(carrier, number=0) as disk:
        disk.probe(timeout_s=10)
        disk.write(0, b"x" * 512)

A request that was under way when the other end was killed is done again after the new probe: a read or a write of the
same bytes twice ends where once would.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from xenvirtio.daemon.msg_carrier import Carrier, wait_for
from xenvirtio.devices.block.config import CONFIG_BYTES, BlockConfig
from xenvirtio.devices.block.driver import BlockDriver, Completion
from xenvirtio.devices.block.layout import S_OK, SECTOR_BYTES
from xenvirtio.errors import PeerProtocolError, ResourceError, SessionLostError
from xenvirtio.virtio import features as feature
from xenvirtio.virtio.device import DeviceType
from xenvirtio.virtio.msg_driver import MsgDriver
from xenvirtio.virtio.msg_driver_bus import DriverBus
from xenvirtio.virtio.status import Status
from xenvirtio.virtqueue.driver import DriverQueue
from xenvirtio.virtqueue.layout import avail_bytes, desc_bytes, used_bytes

log = logging.getLogger("xenvirtio.frontend")

QUEUE_SIZE = 64
REQUEST_TIMEOUT_S = 30.0
"""How long the disk may take for a request, or its end may be away, before we give up."""
LOOK_S = 1.0

WANTED = feature.VERSION_1 | feature.ACCESS_PLATFORM | feature.RING_EVENT_IDX | feature.RING_INDIRECT_DESC
DEVICE_BITS = (1 << 24) - 1

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class DiskFacts:
    """What probing found."""

    features: int
    config: BlockConfig
    vendor: int
    queues: int

    @property
    def size_bytes(self) -> int:
        return self.config.capacity * SECTOR_BYTES


class MsgDisk:
    """Device `number` on the bus of `carrier`, which it owns. For one thread.

    Every method may raise ResourceError (the other end does not answer, the disk failed) and PeerProtocolError (it
    answers what no device may).
    """

    def __init__(self, carrier: Carrier, number: int = 0, *, request_timeout_s: float = REQUEST_TIMEOUT_S) -> None:
        self._carrier = carrier
        self._number = number
        self._timeout_s = request_timeout_s
        self._memory = carrier.dma_allocator()
        self.bus = DriverBus(carrier.link, lambda timeout: wait_for(carrier, timeout))
        self.driver = MsgDriver(self.bus, number)
        self._block: BlockDriver | None = None
        self._queue: DriverQueue | None = None
        self._deadline = 0.0
        self.facts: DiskFacts | None = None
        self.probes = 0

    def probe(self, timeout_s: float | None = None) -> DiskFacts:
        """Wait for the other end, without a limit if none is given, and set the disk up."""
        while True:
            self.bus.connect(timeout_s)
            try:
                self.facts = self._set_up()
            except SessionLostError:
                continue  # it started anew just now
            self.probes += 1
            log.info("the disk is there: %d bytes", self.facts.size_bytes)
            return self.facts

    def _set_up(self) -> DiskFacts:
        info = self.driver.info()
        if info.type != DeviceType.BLOCK:
            known = ", ".join(map(str, self.bus.devices())) or "none"
            raise ResourceError(f"device {self._number} of the bus (type {info.type}) is no disk; it has {known}")
        accepted = self.driver.negotiate(WANTED | DEVICE_BITS)
        self._memory.clear()  # the other end has let go of it, or there would be no session
        size = min(QUEUE_SIZE, self.driver.queue_size_max(0))
        areas = [self._memory.allocate(length(size)) for length in (desc_bytes, avail_bytes, used_bytes)]
        event_index = bool(accepted & feature.RING_EVENT_IDX)
        queue = DriverQueue(size, *(host for _, host in areas), event_index=event_index)
        self.driver.setup_queue(0, size, *(dma for dma, _ in areas))
        self.driver.driver_ok()
        self._queue = queue
        self._block = BlockDriver(
            queue,
            self._memory,
            lambda: self.driver.kick(0),
            wait=self._wait,
            segment_bytes=self._carrier.segment_bytes,
            indirect=bool(accepted & feature.RING_INDIRECT_DESC),
        )
        config = BlockConfig.parse(self.driver.read_config(0, CONFIG_BYTES))
        return DiskFacts(accepted, config, info.vendor, info.queues)

    def _wait(self) -> None:
        assert self._queue is not None
        if self._queue.enable_interrupts():
            return
        self.bus.wait(LOOK_S)
        if self.bus.config_events.pop(self._number, Status(0)) & Status.DEVICE_NEEDS_RESET:
            raise PeerProtocolError("the device asks for a reset: it takes our requests for broken")
        if time.monotonic() > self._deadline:
            raise ResourceError(f"the disk has not answered for {self._timeout_s:g} s; is its backend running?")

    def read(self, offset: int, length_bytes: int) -> bytes:
        """Read bytes; offset and length are multiples of 512."""
        return self._run(lambda block: _check(block.read(offset // SECTOR_BYTES, length_bytes), "read", offset).data)

    def write(self, offset: int, data: bytes) -> None:
        self._run(lambda block: _check(block.write(offset // SECTOR_BYTES, data), "write", offset))

    def flush(self) -> None:
        """Return when all that was written is durable."""
        self._run(lambda block: _check(block.flush(), "flush", 0))

    def _run(self, request: Callable[[BlockDriver], Result]) -> Result:
        self._deadline = time.monotonic() + self._timeout_s
        while True:
            if self._block is None:
                self.probe(max(self._deadline - time.monotonic(), 0.001))
            assert self._block is not None
            try:
                return request(self._block)
            except SessionLostError as error:
                log.warning("probing the disk again: %s", error)
                self._block = None

    def close(self) -> None:
        """Leave the bus; the other end resets the device."""
        self.bus.close()
        self._carrier.close()

    def __enter__(self) -> MsgDisk:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def _check(completion: Completion, what: str, offset: int) -> Completion:
    if completion.status != S_OK:
        raise ResourceError(f"{what} at byte {offset}: the disk answers status {completion.status}")
    return completion
