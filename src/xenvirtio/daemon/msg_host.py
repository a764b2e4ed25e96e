"""One device on a virtio-msg bus: its transport, its queues' rings and threads."""

from __future__ import annotations

import logging
import os
import threading
import time
from functools import partial

from xenvirtio.daemon.dma_space import DmaSpace, Rings
from xenvirtio.errors import ResourceError, XenvirtioError
from xenvirtio.memory.buffer import HostBuffer
from xenvirtio.virtio import features as feature
from xenvirtio.virtio.bounded_log import BoundedLog
from xenvirtio.virtio.device import Device, QueueConfiguration
from xenvirtio.virtio.queue_runner import QueueRunner
from xenvirtio.virtio.registers import PAGE_BYTES, DeviceRegisters
from xenvirtio.virtio.transports.msg import MsgTransport
from xenvirtio.virtio.transports.msg_bus import DeviceBus
from xenvirtio.virtqueue.split import SplitQueue

log = logging.getLogger("xenvirtio.device")


class _RunningQueue:
    def __init__(self, rings: Rings, kick_fd: int, runner: QueueRunner, name: str) -> None:
        self.rings = rings
        self.kick_fd = kick_fd
        self.runner = runner
        self.thread = threading.Thread(target=runner.serve, name=name, daemon=True)


class MsgDeviceHost:
    """Runs a device's queues for its transport (`virtio.device.QueueHost`) and puts it on `bus` as `number`.

    All methods but `raise_interrupt` are called on the thread that serves the bus.
    """

    def __init__(self, name: str, device: Device, bus: DeviceBus, number: int, dma: DmaSpace) -> None:
        self.name = name
        self.device = device
        self._dma = dma
        self._news = BoundedLog(log, name, time.monotonic)  # a driver may start and stop its queues for ever
        self._page = HostBuffer(PAGE_BYTES)
        self._notified = HostBuffer(16)  # where the runners note what they tell; events say it themselves here
        self._queues: dict[int, _RunningQueue] = {}
        self.requests = 0
        self.transport = MsgTransport(
            device,
            DeviceRegisters(self._page.address),
            self,
            bus.send_event,
            number=number,
            name=name,
        )
        bus.add(self.transport)

    def start_queue(self, index: int, configuration: QueueConfiguration, features: int, *, resume: bool) -> None:
        rings = self._dma.map_rings(index, configuration)
        try:
            self._queues[index] = self._start_thread(index, rings, configuration, features)
        except (OSError, RuntimeError) as error:  # no descriptor left, no thread left
            rings.close()
            raise ResourceError(f"queue {index} cannot be started: {error}") from error
        except XenvirtioError:
            rings.close()
            raise
        self._news.info(f"queue {index} started: {configuration.size} entries")

    def _start_thread(
        self, index: int, rings: Rings, configuration: QueueConfiguration, features: int
    ) -> _RunningQueue:
        memory = self._dma.memory()
        queue = SplitQueue(
            configuration.size,
            rings.desc,
            rings.avail,
            rings.used,
            memory,
            queue_index=index,
            event_index=bool(features & feature.RING_EVENT_IDX),
            indirect=bool(features & feature.RING_INDIRECT_DESC),
        )
        kick_fd = os.eventfd(0, os.EFD_CLOEXEC)
        try:
            notify = partial(self.transport.notify_queue, index)
            runner = QueueRunner(
                self.device, queue, memory, kick_fd, self._notified.address, -1, notify, self.transport.fail
            )
            running = _RunningQueue(rings, kick_fd, runner, f"{self.name} queue {index}")
            running.thread.start()
        except BaseException:
            os.close(kick_fd)
            raise
        return running

    def stop_queue(self, index: int) -> None:
        running = self._queues.pop(index, None)
        if running is None:
            return
        running.runner.stop()
        running.thread.join()
        running.rings.close()
        os.close(running.kick_fd)
        self.requests += running.runner.requests
        self._news.info(f"queue {index} stopped")

    def kick(self, index: int) -> None:
        running = self._queues.get(index)
        if running is not None:
            os.eventfd_write(running.kick_fd, 1)

    def raise_interrupt(self) -> None:
        """Every queue may have used buffers."""
        for index in list(self._queues):
            self.transport.notify_queue(index)
