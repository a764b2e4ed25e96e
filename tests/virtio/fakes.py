"""A device, a queue host and a guest's memory bus, each the smallest that shows what a transport did with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from xenvirtio.errors import GuestError, XenvirtioError
from xenvirtio.memory.buffer import HostBuffer
from xenvirtio.memory.guest_memory import GuestMemory
from xenvirtio.virtio.device import DeviceType, QueueConfiguration
from xenvirtio.virtio.driver import MmioDriver
from xenvirtio.virtio.registers import DeviceRegisters
from xenvirtio.virtio.transports.lifecycle import TRANSPORT_FEATURES
from xenvirtio.virtio.transports.mmio import MmioTransport
from xenvirtio.virtqueue.batch import ChainBatch
from xenvirtio.virtqueue.driver import DriverQueue
from xenvirtio.virtqueue.layout import avail_bytes, desc_bytes
from xenvirtio.virtqueue.split import SplitQueue

CONFIG = bytes(range(1, 25))


class FakeDevice:
    """Keeps a log of what the transport called."""

    device_type = DeviceType.BLOCK

    def __init__(self, features: int = 0b110 | 1 << 70, queue_sizes: Sequence[int] = (256, 64)) -> None:
        self.features = features
        self.queue_sizes = tuple(queue_sizes)
        self.config = bytearray(CONFIG)
        self.notify_config: Callable[[], None] | None = None
        self.log: list[tuple[object, ...]] = []
        self.negotiated = 0
        self.settings = 0
        self.processed: list[tuple[int, list[int]]] = []

    @property
    def config_bytes(self) -> int:
        return len(self.config)

    def read_config(self, offset: int, length_bytes: int) -> bytes:
        return bytes(self.config[offset : offset + length_bytes]).ljust(length_bytes, b"\0")

    def write_config(self, offset: int, data: bytes) -> None:
        self.log.append(("write_config", offset, data))
        self.config[offset : offset + len(data)] = data

    def on_config_change(self, notify: Callable[[], None] | None) -> None:
        self.notify_config = notify

    def change_config(self, content: bytes) -> None:
        self.config[: len(content)] = content
        if self.notify_config is not None:
            self.notify_config()

    def negotiate(self, features: int) -> None:
        self.negotiated = features

    @property
    def driver_settings(self) -> int:
        return self.settings

    def restore_settings(self, settings: int) -> None:
        self.settings = settings

    def activate(self, features: int) -> None:
        self.log.append(("activate", features))

    def process(self, queue_index: int, batch: ChainBatch, memory: GuestMemory) -> None:
        self.processed.append((queue_index, [batch.head[chain] for chain in range(batch.count)]))

    def reset(self) -> None:
        self.log.append(("reset",))

    def close(self) -> None:
        self.log.append(("close",))


@dataclass
class FakeQueues:
    """A queue host that only remembers; `refuse` is raised by the next start."""

    running: dict[int, QueueConfiguration] = field(default_factory=dict)
    log: list[tuple[object, ...]] = field(default_factory=list)
    interrupts: int = 0
    refuse: XenvirtioError | None = None
    on_stop: Callable[[int], None] = lambda index: None

    def start_queue(self, index: int, configuration: QueueConfiguration, features: int, *, resume: bool) -> None:
        if self.refuse is not None:
            refusal, self.refuse = self.refuse, None
            raise refusal
        assert index not in self.running, f"queue {index} was started twice"
        self.log.append(("resume" if resume else "start", index, configuration, features))
        self.running[index] = configuration

    def stop_queue(self, index: int) -> None:
        self.on_stop(index)
        self.log.append(("stop", index))
        self.running.pop(index, None)

    def kick(self, index: int) -> None:
        self.log.append(("kick", index))

    def raise_interrupt(self) -> None:
        self.interrupts += 1


class RingQueues(FakeQueues):
    """A queue host that really serves split rings, in the kicking thread. DMA addresses are host addresses."""

    def __init__(self, device: FakeDevice) -> None:
        super().__init__()
        self.device = device
        self.transport: MmioTransport | None = None
        self.rings: dict[int, SplitQueue] = {}

    def start_queue(self, index: int, configuration: QueueConfiguration, features: int, *, resume: bool) -> None:
        super().start_queue(index, configuration, features, resume=resume)
        ring = SplitQueue(
            configuration.size,
            configuration.desc,
            configuration.driver,
            configuration.device,
            GuestMemory(),
            queue_index=index,
        )
        if resume:
            ring.resume()
        self.rings[index] = ring
        self.kick(index)

    def stop_queue(self, index: int) -> None:
        super().stop_queue(index)
        self.rings.pop(index, None)

    def kick(self, index: int) -> None:
        super().kick(index)
        assert self.transport is not None
        batch = ChainBatch()
        ring = self.rings[index]
        try:
            while ring.take(batch):
                self.device.process(index, batch, GuestMemory())
                ring.complete(batch)
                if ring.publish():
                    self.transport.notify_used()
        except GuestError as error:
            self.transport.fail(error)


class GuestQueue:
    """Ring memory of one queue and the driver's half of it."""

    def __init__(self, size: int = 16) -> None:
        self.size = size
        self.buffer = HostBuffer(3 * 4096)
        self.desc = self.buffer.address
        self.avail = self.desc + desc_bytes(size)
        self.used = -(-(self.avail + avail_bytes(size)) // 4) * 4
        self.ring = DriverQueue(size, self.desc, self.avail, self.used)

    def offer(self, token: object = None) -> int:
        """Offer one writable buffer; what it points to does not matter here."""
        return self.ring.offer([], [(self.buffer.address, 16)], token)


class Machine:
    """One device behind its registers, and a guest's driver for it."""

    def __init__(
        self,
        device: FakeDevice | None = None,
        queues: FakeQueues | None = None,
        *,
        transport_features: int = TRANSPORT_FEATURES,
        page: HostBuffer | None = None,
    ) -> None:
        self.page = page or HostBuffer(4096)
        self.device = device or FakeDevice()
        self.queues = queues or FakeQueues()
        self.registers = DeviceRegisters(self.page.address)
        self.transport = MmioTransport(
            self.device, self.registers, self.queues, transport_features=transport_features, clock=lambda: 0.0
        )
        self.driver = MmioDriver(self)

    @classmethod
    def with_rings(cls) -> Machine:
        device = FakeDevice()
        queues = RingQueues(device)
        machine = cls(device, queues)
        queues.transport = machine.transport
        return machine

    def successor(self) -> Machine:
        """The process that takes over after this one was killed."""
        return Machine(page=self.page)

    def mmio_read(self, address: int, size: int) -> int:
        return self.transport.read(address, size)

    def mmio_write(self, address: int, size: int, value: int) -> None:
        self.transport.write(address, size, value)

    def read(self, register: int) -> int:
        return self.transport.read(register, 4)

    def write(self, register: int, value: int) -> None:
        self.transport.write(register, 4, value)

    def negotiate(self, wanted: int = (1 << 128) - 1) -> int:
        return self.driver.negotiate(wanted)

    def setup_queue(self, index: int = 0, size: int = 16, desc: int = 0x10000) -> QueueConfiguration:
        configuration = QueueConfiguration(size, desc, desc + 0x1000, desc + 0x2000)
        self.driver.setup_queue(index, size, configuration.desc, configuration.driver, configuration.device)
        return configuration

    def go_live(self, wanted: int = (1 << 128) - 1, queues: int = 1) -> None:
        self.negotiate(wanted)
        for index in range(queues):
            self.setup_queue(index)
        self.driver.driver_ok()
