"""A guest's block driver: boots against the emulated host's registers and does requests, as a guest kernel would."""

from __future__ import annotations

from xenvirtio.devices.block.driver import BlockDriver
from xenvirtio.ids import PAGE_SIZE, Spi
from xenvirtio.sandbox.memory import GrantedDma, PlainDma
from xenvirtio.sandbox.toolstack import CreatedDevice, CreatedGuest
from xenvirtio.virtio import features as feature
from xenvirtio.virtio.driver import MmioDriver
from xenvirtio.virtqueue.driver import DriverQueue
from xenvirtio.virtqueue.layout import avail_bytes, desc_bytes, used_bytes

LOOK_INTERVAL_S = 0.5
"""How often a waiting guest looks whether it is still alive."""

BLOCK_FEATURES = feature.VERSION_1 | feature.ACCESS_PLATFORM | feature.RING_EVENT_IDX | feature.RING_INDIRECT_DESC
DEVICE_BITS = (1 << 24) - 1


class GuestDisk:
    """A probed and started virtio disk of a sandbox guest, its registers touched by vCPU `vcpu`.

    Raises (from the constructor and every request):
        VcpuStopped: the guest has crashed or was destroyed.
    """

    def __init__(
        self, guest: CreatedGuest, device: CreatedDevice, *, vcpu: int = 0, queue_size: int = 64, indirect: bool = True
    ) -> None:
        self._domain = guest.domain
        self.driver = MmioDriver(guest.domain.vcpu(vcpu), device.base)
        self.dma = GrantedDma(guest.domain) if device.grant_usage else PlainDma(guest.domain)
        self._interrupt = guest.domain.interrupt(Spi(device.irq))
        self.device_type = self.driver.probe()
        self.features = self.driver.negotiate(BLOCK_FEATURES | DEVICE_BITS)
        areas = [self.dma.allocate(size(queue_size)) for size in (desc_bytes, avail_bytes, used_bytes)]
        self.queue = DriverQueue(
            queue_size, *(host for _, host in areas), event_index=bool(self.features & feature.RING_EVENT_IDX)
        )
        self.driver.setup_queue(0, queue_size, *(dma for dma, _ in areas))
        self.driver.driver_ok()
        self.block = BlockDriver(
            self.queue,
            self.dma,
            lambda: self.driver.kick(0),
            wait=self.wait,
            indirect=indirect,
            segment_bytes=PAGE_SIZE,
        )
        self.capacity_sectors = int.from_bytes(self.driver.read_config(0, 8), "little")

    def wait(self) -> None:
        """Wait until the device has interrupted, for ever if need be as a kernel does, and acknowledge it."""
        if self.queue.enable_interrupts():
            return
        while not self._interrupt.wait(LOOK_INTERVAL_S):
            self._domain.check_running()
        events = self.driver.interrupt_status()
        if events:
            self.driver.acknowledge(events)
