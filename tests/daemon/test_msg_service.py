"""A real disk behind a bus in this process: what a hostile driver's queues and addresses cost."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from xenvirtio.daemon.dma_space import GrantDma, WindowDma
from xenvirtio.daemon.msg_carrier import LocalCarrier, local_carriers, wait_for
from xenvirtio.daemon.msg_service import BusService
from xenvirtio.devices.block.device import BlockDevice
from xenvirtio.errors import GuestError, PeerProtocolError
from xenvirtio.frontend.msg_disk import MsgDisk
from xenvirtio.ids import PAGE_SIZE, DomId
from xenvirtio.memory.buffer import HostBuffer
from xenvirtio.resources.file import open_disk
from xenvirtio.virtio.device import QueueConfiguration
from xenvirtio.virtio.msg_driver import MsgDriver
from xenvirtio.virtio.msg_driver_bus import DriverBus
from xenvirtio.virtio.status import Status
from xenvirtio.virtio.transports.msg_codec import Message
from xenvirtio.virtqueue.driver import DriverQueue
from xenvirtio.xen.emulated import EmulatedHost

WINDOW = 1 << 20
DISK_BYTES = 1 << 20


class Bus:
    """A disk served in a thread, and the driver's end."""

    def __init__(self, image: Path) -> None:
        with image.open("wb") as file:
            file.truncate(DISK_BYTES)
        self.front, back = local_carriers(WINDOW)
        self.service = BusService(back, "bus")
        self.service.add("disk", BlockDevice(open_disk(image)), 0)
        self.service.start()

    def driver(self) -> MsgDriver:
        bus = DriverBus(self.front.link, lambda timeout: wait_for(self.front, timeout))
        bus.connect(30)
        return MsgDriver(bus)


@pytest.fixture
def bus(tmp_path: Path) -> Iterator[Bus]:
    bus = Bus(tmp_path / "disk")
    yield bus
    bus.service.close()


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def works(front: LocalCarrier) -> bool:
    disk = MsgDisk(front)
    disk.probe(30)
    disk.write(4096, b"data" * 128)
    disk.flush()
    return disk.read(4096, 512) == b"data" * 128


@pytest.mark.parametrize(
    "areas",
    [
        (0, 0x2000, 0x3000),  # the window's first page is not for DMA
        (WINDOW, 0x2000, 0x3000),
        (WINDOW - 16, 0x2000, 0x3000),  # begins inside, ends outside
        (0x1000, WINDOW - 2, 0x3000),
        (0x1000, 0x2000, (1 << 64) - 4),
        (1 << 63, 0x2000, 0x3000),
    ],
)
def test_rings_outside_the_window_cost_only_this_driver(bus: Bus, areas: tuple[int, int, int]) -> None:
    driver = bus.driver()
    driver.negotiate((1 << 128) - 1)
    driver.setup_queue(0, 16, *areas)
    with pytest.raises(PeerProtocolError, match="asks for a reset"):
        driver.driver_ok()
    assert works(bus.front)


@pytest.mark.parametrize("address", [0, 64, PAGE_SIZE - 16, WINDOW, WINDOW - 8, 1 << 63 | 0x1000, (1 << 64) - 1])
def test_buffers_outside_the_window_are_not_touched(bus: Bus, address: int) -> None:
    driver = bus.driver()
    driver.negotiate((1 << 32) | (1 << 33))
    memory = bus.front.dma_allocator()
    areas = [memory.allocate(length) for length in (256, 64, 256)]
    queue = DriverQueue(16, *(host for _, host in areas))
    driver.setup_queue(0, 16, *(dma for dma, _ in areas))
    driver.driver_ok()
    status, _ = memory.allocate(64)
    queue.offer([(address, 16)], [(address, 4096), (status, 1)])
    driver.kick(0)
    wait_until(lambda: bool(queue.collect()) or bool(driver.status & Status.DEVICE_NEEDS_RESET))
    assert works(bus.front)


def test_a_ring_of_nonsense_asks_for_a_reset(bus: Bus) -> None:
    driver = bus.driver()
    driver.negotiate((1 << 32) | (1 << 33))
    memory = bus.front.dma_allocator()
    areas = [memory.allocate(length) for length in (256, 64, 256)]
    queue = DriverQueue(16, *(host for _, host in areas))
    driver.setup_queue(0, 16, *(dma for dma, _ in areas))
    driver.driver_ok()
    queue.offer([(0x1000, 16)], [])
    ctypes.memset(areas[1][1] + 4, 0xFF, 32)  # heads that do not exist
    driver.kick(0)
    wait_until(lambda: bool(driver.status & Status.DEVICE_NEEDS_RESET))
    assert works(bus.front)


def test_a_window_reaches_from_its_start_to_its_end() -> None:
    buffer = HostBuffer(1 << 16)
    dma = WindowDma(buffer.address, 0x9000, 1 << 16)
    rings = dma.map_rings(0, QueueConfiguration(16, 0x9000, 0xA000, 0xB000))
    assert (rings.desc, rings.avail, rings.used) == tuple(buffer.address + n for n in (0x9000, 0xA000, 0xB000))
    with pytest.raises(GuestError, match="outside the shared region"):
        dma.map_rings(0, QueueConfiguration(16, 0x8FF0, 0xA000, 0xB000))
    memory = dma.memory()
    assert memory.locate(0x8FFF, 1, True) == 0
    assert memory.locate(0xFFFF, 8, True) == buffer.address + 0xFFFF
    assert memory.run == 1
    assert memory.locate(1 << 16, 1, False) == 0


def test_grants_lead_to_granted_memory_and_nowhere_else() -> None:
    with EmulatedHost() as host:
        domain = host.create_domain(memory_bytes=1 << 20)
        granted = host.open_hypervisor(domain.domid).open_grant_allocator().allocate(DomId(0), 3, writable=True)
        dma = GrantDma(host.open_hypervisor().open_grants(), domain.domid)
        base = 1 << 63 | granted.references[0] << 12
        dma.map_rings(0, QueueConfiguration(16, base, base + 0x1000, base + 0x2000)).close()
        for desc in (0x1000, base + 0x3000):
            with pytest.raises(GuestError):
                dma.map_rings(0, QueueConfiguration(16, desc, base + 0x1000, base + 0x2000))


def test_a_driver_that_takes_no_answers_burns_none_of_our_time(bus: Bus) -> None:
    driver = bus.driver()
    link = bus.front.link
    ping = Message(3, b"abcd", token=1, is_bus=True).encode()
    deadline = time.monotonic() + 30
    while not bus.service.bus.is_choked:
        link.send(ping)
        assert time.monotonic() < deadline
    while link.send(ping):  # more lies waiting than will be taken
        pass
    before = time.process_time()
    time.sleep(1)
    assert time.process_time() - before < 0.3
    wait_until(lambda: link.receive() is None and not bus.service.bus.is_choked)
    assert driver.probe() == 2
