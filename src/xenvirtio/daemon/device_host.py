"""One device of one guest: its transport, its queues' rings, threads and notifications."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from xenvirtio.daemon.ring_mapping import RingMapping
from xenvirtio.errors import HypervisorError, ResourceError, XenvirtioError
from xenvirtio.ids import DomId, Spi
from xenvirtio.ioreq.pump import DeviceWindow
from xenvirtio.memory.address_space import AddressSpace
from xenvirtio.memory.foreign import ForeignChunks
from xenvirtio.memory.grants import GrantMemory
from xenvirtio.memory.regions import RegionMemory
from xenvirtio.virtio import features as feature
from xenvirtio.virtio.bounded_log import BoundedLog
from xenvirtio.virtio.device import Device, QueueConfiguration
from xenvirtio.virtio.queue_runner import QueueRunner
from xenvirtio.virtio.registers import DeviceRegisters
from xenvirtio.virtio.transports.mmio import MmioTransport
from xenvirtio.virtqueue.split import SplitQueue
from xenvirtio.xen.capabilities import DeviceModel, ForeignMemory, Grants

log = logging.getLogger("xenvirtio.device")


@dataclass(frozen=True, slots=True)
class GuestAccess:
    """What all devices of one guest share: the ways to reach its memory and to interrupt it."""

    domid: DomId
    model: DeviceModel
    foreign: ForeignMemory
    grants: Grants
    chunks: ForeignChunks


class _RunningQueue:
    def __init__(self, rings: RingMapping, kick_fd: int, runner: QueueRunner, memory: GrantMemory, name: str) -> None:
        self.rings = rings
        self.kick_fd = kick_fd
        self.runner = runner
        self.grant_memory = memory
        self.thread = threading.Thread(target=runner.serve, name=name, daemon=True)


class DeviceHost:
    """Runs a device's queues for its transport (`virtio.device.QueueHost`).

    All methods but `raise_interrupt` and `abandon` are called on the guest's pump thread, or before it runs.
    """

    def __init__(
        self,
        name: str,
        device: Device,
        registers_address: int,
        base: int,
        window_bytes: int,
        irq: Spi,
        guest: GuestAccess,
        transport_features: int,
    ) -> None:
        self.name = name
        self.device = device
        self._guest = guest
        self._irq = irq
        self._is_going = False
        self._news = BoundedLog(log, name, time.monotonic)  # a driver may start and stop its queues for ever
        self._irq_fd = -1
        irq_fd = guest.model.open_irqfd(irq)
        if irq_fd is not None:
            self._irq_fd = irq_fd
        self._queues: dict[int, _RunningQueue] = {}
        self._finished: dict[str, int] = dict.fromkeys(COUNTERS, 0)
        self.transport = MmioTransport(
            device, DeviceRegisters(registers_address), self, transport_features=transport_features, name=name
        )
        self.window = DeviceWindow(base, window_bytes, registers_address, len(device.queue_sizes), self.transport)

    def start_queue(self, index: int, configuration: QueueConfiguration, features: int, *, resume: bool) -> None:
        guest = self._guest
        rings = RingMapping(guest.foreign, guest.grants, guest.domid, index, configuration)
        try:
            running = self._start_thread(index, rings, configuration, features, resume=resume)
        except (OSError, RuntimeError) as error:  # no descriptor left, no thread left
            rings.close()
            raise ResourceError(f"queue {index} cannot be started: {error}") from error
        except XenvirtioError:
            rings.close()
            raise
        self._queues[index] = running
        self.window.kick_fds[index] = running.kick_fd
        how = "granted" if configuration.desc >> 63 else "plain"
        again = ", resumed" if resume else ""
        self._news.info(f"queue {index} started: {configuration.size} entries, {how}{again}")

    def _start_thread(
        self, index: int, rings: RingMapping, configuration: QueueConfiguration, features: int, *, resume: bool
    ) -> _RunningQueue:
        guest = self._guest
        granted = GrantMemory(guest.grants, guest.domid)
        memory = AddressSpace(RegionMemory(guest.chunks), granted)
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
        if resume:
            queue.resume()
        kick_fd = os.eventfd(0, os.EFD_CLOEXEC)
        try:
            runner = QueueRunner(
                self.device,
                queue,
                memory,
                kick_fd,
                self.window.interrupt_status,
                self._irq_fd,
                self.raise_interrupt,
                self.transport.fail,
            )
            if self._is_going:
                runner.abandon()
            running = _RunningQueue(rings, kick_fd, runner, granted, f"{self.name} queue {index}")
            running.thread.start()
        except BaseException:
            os.close(kick_fd)
            raise
        return running

    def stop_queue(self, index: int) -> None:
        running = self._queues.pop(index, None)
        if running is None:
            return
        self.window.kick_fds[index] = -1
        running.runner.stop()
        running.thread.join()
        running.rings.close()
        os.close(running.kick_fd)
        for counter, value in _count(running).items():
            self._finished[counter] += value
        self._news.info(f"queue {index} stopped")

    def kick(self, index: int) -> None:
        running = self._queues.get(index)
        if running is not None:
            os.eventfd_write(running.kick_fd, 1)

    def raise_interrupt(self) -> None:
        try:
            if self._irq_fd >= 0:
                os.eventfd_write(self._irq_fd, 1)
            else:
                self._guest.model.set_irq_level(self._irq, 1)
        except (OSError, HypervisorError) as error:
            log.warning("interrupt not delivered: %s", error, extra={"device": self.name})

    def while_paused(self, action: Callable[[], None]) -> None:
        """Run `action` while no queue of this device touches guest memory."""
        runners = [running.runner for running in list(self._queues.values())]
        for runner in runners:
            runner.pause()
        try:
            action()
        finally:
            for runner in runners:
                runner.unpause()

    def abandon(self) -> None:
        """Have the queues give up what they are serving: the device is about to be stopped. From any thread."""
        self._is_going = True
        for running in list(self._queues.values()):
            running.runner.abandon()

    def counters(self) -> dict[str, int]:
        """Totals since the device was attached, keyed by `COUNTERS`."""
        totals = dict(self._finished)
        for running in list(self._queues.values()):
            for counter, value in _count(running).items():
                totals[counter] += value
        return totals

    def stop(self) -> None:
        """Stop all queues and give up what the host holds; the registers stay as the driver left them."""
        self.transport.close()
        if self._irq_fd >= 0:
            os.close(self._irq_fd)
            self._irq_fd = -1


COUNTERS = ("requests", "batches", "interrupts", "grant_calls", "grant_segments")


def _count(running: _RunningQueue) -> dict[str, int]:
    runner, memory = running.runner, running.grant_memory
    values = (runner.requests, runner.batches, runner.interrupts, memory.calls, memory.segments)
    return dict(zip(COUNTERS, values, strict=True))


