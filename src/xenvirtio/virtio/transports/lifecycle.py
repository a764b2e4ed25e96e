"""What every transport does alike with its device: status, features, queues, configuration changes.

How the driver speaks (registers, messages) and how it is told of events is a subclass's. Its methods keep the rules of
the `mmio` module: they belong to the thread that serves the driver, but for `fail`, `notify_used` and the device's
configuration callback, and each has the same effect twice as once.

Source: VIRTIO 1.4, 2 (Basic Facilities of a Virtio Device) and 3.1 (Device Initialization).
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from xenvirtio.errors import GuestError, ResourceError, UsageError, XenvirtioError
from xenvirtio.virtio import features as feature
from xenvirtio.virtio.bounded_log import BoundedLog
from xenvirtio.virtio.device import Device, QueueConfiguration, QueueHost
from xenvirtio.virtio.registers import QUEUES_MAX, DeviceRegisters
from xenvirtio.virtio.status import Status
from xenvirtio.virtio.transports.mmio_layout import CONFIG_CHANGE, USED_BUFFER
from xenvirtio.virtqueue.layout import QUEUE_SIZE_MAX

VENDOR_ID = 0x004E4558  # "XEN"; no registry exists, drivers only show it

TRANSPORT_FEATURES = (
    feature.RING_INDIRECT_DESC
    | feature.RING_EVENT_IDX
    | feature.VERSION_1
    | feature.ACCESS_PLATFORM
    | feature.IN_ORDER
    | feature.RING_RESET
)
"""Offered beside the device's own features unless a transport is told otherwise."""

SUPPORTED_FEATURES = TRANSPORT_FEATURES | feature.NOTIFICATION_DATA
"""All that may be offered. NOTIFICATION_DATA brings nothing here: the avail index is read from the ring anyway."""

DRIVER_STATUS = Status.ACKNOWLEDGE | Status.DRIVER | Status.DRIVER_OK | Status.FEATURES_OK | Status.FAILED
"""Bits a driver may set. SUSPEND is not offered, DEVICE_NEEDS_RESET is ours."""

ALL_ONES = 0xFFFFFFFF


class DeviceLifecycle:
    """One `device`, its state in `registers`, its queues run by `queues`; a transport derives from it.

    Raises UsageError when the device or `transport_features` ask for what cannot be offered.
    """

    def __init__(
        self,
        device: Device,
        registers: DeviceRegisters,
        queues: QueueHost,
        *,
        transport_features: int,
        name: str,
        log: logging.Logger,
        clock: Callable[[], float],
    ) -> None:
        self._device = device
        self._registers = registers
        self._queues = queues
        self._queue_sizes = tuple(device.queue_sizes)
        self.offered_features = _offer(device.features, transport_features, self._queue_sizes)
        self._log = BoundedLog(log, name, clock)
        self._generation_lock = threading.Lock()
        self._config_seen: bytes | None = None
        self.failures = 0
        device.on_config_change(self._config_changed)

    @property
    def is_live(self) -> bool:
        """The driver is ready and nothing has gone wrong: queues that are ready run."""
        live = Status.DRIVER_OK | Status.DEVICE_NEEDS_RESET
        return self._registers.status & live == Status.DRIVER_OK

    def notify_used(self) -> None:
        """Tell the driver that buffers were used; callable from any thread."""
        self._notify(USED_BUFFER)

    def fail(self, error: XenvirtioError) -> None:
        """Ask the driver for a reset; callable from any thread, that of a queue included.

        Queues are not stopped: what cannot go on has stopped by itself, and the driver's reset stops the rest.

        Source: VIRTIO 1.4, 2.1.2.
        """
        before = self._registers.set_status(Status.DEVICE_NEEDS_RESET)
        if before & Status.DEVICE_NEEDS_RESET:
            return
        self.failures += 1
        self._log.warning(f"the device needs a reset: {error}")
        if before & Status.DRIVER_OK:
            self._notify(CONFIG_CHANGE)

    def close(self) -> None:
        """Stop serving. The registers stay as they are."""
        self._stop_queues()
        self._device.on_config_change(None)
        self._device.close()

    def _notify(self, events: int) -> None:
        self._registers.raise_events(events)
        self._deliver()

    def _deliver(self) -> None:
        """Tell the driver that the interrupt status has something for it; from any thread."""
        self._queues.raise_interrupt()

    # Status and features

    def _add_status(self, value: int) -> None:
        """Execute a driver's write of a status that is not 0."""
        before = self._registers.status
        added = value & DRIVER_STATUS & ~before  # drivers never clear a bit; a missing one is no request
        problem = self._unacceptable_features()
        if added & Status.FEATURES_OK and problem is not None:
            self._log.warning(f"FEATURES_OK refused: {problem}")
            added &= ~int(Status.FEATURES_OK)
        if added & Status.DRIVER_OK and not (before | added) & Status.FEATURES_OK:
            self._registers.set_status(added & ~int(Status.DRIVER_OK))
            raise GuestError("DRIVER_OK without FEATURES_OK")
        if added & Status.FEATURES_OK:
            self._device.negotiate(self._registers.driver_features)
        before = self._registers.set_status(added)
        if added & Status.DRIVER_OK:
            self._go_live(failed=bool(before & Status.DEVICE_NEEDS_RESET))

    def _go_live(self, *, failed: bool) -> None:
        if failed:
            self._notify(CONFIG_CHANGE)
            return
        self._activate(resume=False)
        if self._registers.interrupt_status & CONFIG_CHANGE:
            self._deliver()  # held back by _config_changed

    def _activate(self, *, resume: bool) -> None:
        """Start the device and every ready queue. A successor may have been configured to offer less than before."""
        problem = self._unacceptable_features()
        if problem is None and any(queue.ready for queue in self._registers.queues[len(self._queue_sizes) :]):
            problem = "a queue is in use that the device no longer has"
        if problem is not None:
            raise ResourceError(f"cannot serve what was negotiated: {problem}")
        self._device.activate(self._registers.driver_features)
        for index in range(len(self._queue_sizes)):
            if self._registers.queues[index].ready:
                self._start_queue(index, resume=resume)

    def _unacceptable_features(self) -> str | None:
        """Say why the driver's feature set cannot be served, or None."""
        accepted = self._registers.driver_features
        unknown = accepted & ~self.offered_features
        if unknown:
            return f"not offered: {feature.describe(unknown)}"
        if not accepted & feature.VERSION_1:
            return "VERSION_1 is missing: legacy drivers are not served"
        return None

    def _negotiated(self, wanted: int) -> bool:
        return bool(self._registers.status & Status.FEATURES_OK and self._registers.driver_features & wanted)

    def _reset(self) -> None:
        self._stop_queues()
        self._device.reset()
        self._registers.clear()
        self._advance_generation()  # the device may have gone back to its initial configuration

    # Queues

    def _set_ready(self, index: int) -> None:
        """Take queue `index` as the driver set it up; a live device serves it at once.

        Raises:
            GuestError: no queue can be like that.
        """
        self._configuration(index)
        self._registers.queues[index].set_ready(True)
        if self.is_live:
            self._start_queue(index, resume=False)

    def _kick(self, index: int) -> bool:
        """Pass a driver's notification on; say whether there was somebody to hear it."""
        heard = index < len(self._queue_sizes) and self._registers.queues[index].ready and self.is_live
        if heard:
            self._queues.kick(index)
        return heard

    def _start_queue(self, index: int, *, resume: bool) -> None:
        configuration = self._configuration(index)
        self._queues.start_queue(index, configuration, self._registers.driver_features, resume=resume)

    def _stop_queues(self) -> None:
        for index in range(len(self._queue_sizes)):
            self._queues.stop_queue(index)

    def _configuration(self, index: int) -> QueueConfiguration:
        """Return what the driver set up for a queue.

        Raises:
            GuestError: no queue can be like that. The alignment matters to us as well: an atomic access that is not
                aligned kills the process on arm64.

        Source: VIRTIO 1.4, 2.7 (size and alignment of split virtqueues).
        """
        queue = self._registers.queues[index]
        configuration = QueueConfiguration(queue.size, queue.desc, queue.driver, queue.device)
        size = configuration.size
        if size == 0 or size & (size - 1) or size > self._queue_sizes[index]:
            raise GuestError(f"size {size} is no power of two up to {self._queue_sizes[index]}", queue_index=index)
        if configuration.desc % 16 or configuration.driver % 2 or configuration.device % 4:
            raise GuestError("an area of the ring is not aligned", queue_index=index)
        return configuration

    # Configuration space

    def _config_content(self) -> bytes:
        """Return all of configuration space, at the generation that the registers then show.

        The device may change it between two accesses, before its callback says so. So every read looks at all of it
        and moves the generation when it is not what the last one saw: no driver can piece two states together.
        """
        content = self._device.read_config(0, self._device.config_bytes)
        if content != self._config_seen:
            if self._config_seen is not None:
                self._advance_generation()
            self._config_seen = content
        return content

    def _store_config(self, offset: int, data: bytes) -> None:
        """Pass a driver's write on; its range was checked."""
        for start in range(0, len(data), 4):  # the specification knows no access wider than 32 bits
            self._device.write_config(offset + start, data[start : start + 4])
        self._registers.driver_settings = self._device.driver_settings

    def _config_changed(self) -> None:
        """The device's callback, from any thread.

        Before DRIVER_OK the event is recorded and `_go_live` delivers it; an untouched device has nobody to tell.
        Each side sets its bit before it looks at the other's, so one of the two delivers.
        """
        self._advance_generation()
        if self._registers.status:
            self._registers.raise_events(CONFIG_CHANGE)
            if self._registers.status & Status.DRIVER_OK:
                self._deliver()

    def _advance_generation(self) -> None:
        with self._generation_lock:
            self._registers.config_generation = self._registers.config_generation + 1 & ALL_ONES


def _offer(device_features: int, transport_features: int, queue_sizes: tuple[int, ...]) -> int:
    """Check what a device and a transport want to offer; return the whole feature set."""
    if device_features & ~feature.DEVICE_BITS:
        raise UsageError(f"no device features: {feature.describe(device_features & ~feature.DEVICE_BITS)}")
    if transport_features & ~SUPPORTED_FEATURES:
        raise UsageError(f"no transport of ours supports: {feature.describe(transport_features & ~SUPPORTED_FEATURES)}")
    if not transport_features & feature.VERSION_1:
        raise UsageError("VERSION_1 must be offered")
    if len(queue_sizes) > QUEUES_MAX:
        raise UsageError(f"{len(queue_sizes)} queues, {QUEUES_MAX} are possible")
    for size in queue_sizes:
        if size <= 0 or size & (size - 1) or size > QUEUE_SIZE_MAX:
            raise UsageError(f"queue size {size}, allowed are powers of two up to {QUEUE_SIZE_MAX}")
    return device_features | transport_features
