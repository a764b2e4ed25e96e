"""One device on a virtio-msg bus within one thread, and its driver; and links whose ends a test can kill."""

from __future__ import annotations

from collections import deque
from itertools import count

from tests.virtio.fakes import FakeDevice, FakeQueues
from xenvirtio.memory.buffer import HostBuffer
from xenvirtio.virtio.device import QueueConfiguration
from xenvirtio.virtio.msg_driver import MsgDriver
from xenvirtio.virtio.msg_driver_bus import DriverBus
from xenvirtio.virtio.registers import DeviceRegisters
from xenvirtio.virtio.transports.lifecycle import TRANSPORT_FEATURES
from xenvirtio.virtio.transports.msg import MsgTransport
from xenvirtio.virtio.transports.msg_bus import DeviceBus
from xenvirtio.virtio.transports.msg_codec import Message
from xenvirtio.virtio.transports.msg_datagram import DatagramLink, DmaKind
from xenvirtio.virtio.transports.msg_link import MessageLink
from xenvirtio.virtio.transports.msg_region import RegionLink, Role, View

NUMBER = 7
REGION_BYTES = 64 << 10


class Pipe:
    """Datagrams both ways; `room` limits each."""

    def __init__(self, room: int = 64) -> None:
        self.room = room
        self.queues: tuple[deque[bytes], deque[bytes]] = (deque(), deque())

    def end(self, side: int) -> PipeEnd:
        return PipeEnd(self, side)


class PipeEnd:
    def __init__(self, pipe: Pipe, side: int) -> None:
        self.pipe = pipe
        self.side = side

    def send(self, data: bytes) -> bool:
        outgoing = self.pipe.queues[1 - self.side]
        if len(outgoing) >= self.pipe.room:
            return False
        outgoing.append(data)
        return True

    def receive(self) -> bytes | None:
        incoming = self.pipe.queues[self.side]
        return incoming.popleft() if incoming else None


class Links:
    """Both ends of a carrier, made anew at will: `driver()` and `device()` are what a fresh process opens."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.pipe = Pipe()
        self.memory = HostBuffer(REGION_BYTES)
        self.memory.view[:] = b"\xc2" * REGION_BYTES
        self.notified = 0
        self._numbers = count(1)

    def draw(self) -> int:
        return next(self._numbers)

    def _notify(self) -> None:
        self.notified += 1

    def driver(self) -> MessageLink:
        return self._end(Role.DRIVER)

    def device(self) -> MessageLink:
        return self._end(Role.DEVICE)

    def _end(self, role: Role) -> MessageLink:
        if self.kind == "region":
            return RegionLink(self.memory.address, REGION_BYTES, role, View.CACHED, self._notify, self.draw)
        side = 0 if role is Role.DRIVER else 1
        self.pipe.queues[side].clear()  # what waited for the process before is gone with it
        return DatagramLink(self.pipe.end(side), self.draw, DmaKind.WINDOW)


class MsgMachine:
    """A device behind messages, and a driver whose waiting lets the device's end work."""

    def __init__(
        self,
        device: FakeDevice | None = None,
        queues: FakeQueues | None = None,
        *,
        transport_features: int = TRANSPORT_FEATURES,
        links: Links | None = None,
        with_driver: bool = True,
    ) -> None:
        self.links = links or Links("datagram")
        self.device = device or FakeDevice()
        self.queues = queues or FakeQueues()
        self.page = HostBuffer(4096)
        self.registers = DeviceRegisters(self.page.address)
        self.now = 0.0
        self.bus = DeviceBus(self.links.device(), clock=lambda: self.now)
        self.transport = MsgTransport(
            self.device,
            self.registers,
            self.queues,
            self.bus.send_event,
            number=NUMBER,
            transport_features=transport_features,
            clock=lambda: self.now,
        )
        self.bus.add(self.transport)
        self.bus.announce()
        if with_driver:
            self.driver_bus = self.new_driver_bus()
            self.driver = MsgDriver(self.driver_bus, NUMBER)

    def new_driver_bus(self) -> DriverBus:
        return DriverBus(self.links.driver(), self.serve, clock=lambda: self.now)

    def serve(self, timeout_s: float = 0.0) -> None:
        """What the device's process does while the driver waits; the driver's patience runs out meanwhile."""
        self.now += timeout_s
        while self.bus.serve():
            pass

    @classmethod
    def connected(cls, *args: object, **kwargs: object) -> MsgMachine:
        machine = cls(*args, **kwargs)  # type: ignore[arg-type]
        machine.driver_bus.connect(10)
        return machine

    def request(self, number: int, payload: bytes = b"") -> Message | None:
        """Hand a request straight to the transport."""
        return self.transport.handle(Message(number, payload, NUMBER, token=1))

    def setup_queue(self, index: int = 0, size: int = 16, desc: int = 0x10000) -> QueueConfiguration:
        configuration = QueueConfiguration(size, desc, desc + 0x1000, desc + 0x2000)
        self.driver.setup_queue(index, size, configuration.desc, configuration.driver, configuration.device)
        return configuration

    def go_live(self, wanted: int = (1 << 128) - 1, queues: int = 1) -> None:
        self.driver.negotiate(wanted)
        for index in range(queues):
            self.setup_queue(index)
        self.driver.driver_ok()

    def events(self) -> DriverBus:
        """Let both ends work; the driver's end then shows what came."""
        self.serve()
        self.driver_bus.poll()
        return self.driver_bus
