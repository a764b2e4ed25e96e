"""Virtio over MMIO, version 2: one device's registers as its driver sees them.

The guest controls every access: what has no meaning reads 0, changes nothing and is counted; what breaks a rule
of virtio ends in DEVICE_NEEDS_RESET for this device.

**Threads.** `read`, `write`, `restore` and `close` belong to the one thread that serves register accesses. `fail`,
`notify_used` and the device's config-change callback come from any thread; they touch atomic registers only and
never wait for a queue.

**A killed process.** All state lies in `DeviceRegisters`. A predecessor may have died after it executed an access and
before it answered, so every access may be executed twice, the second time by a successor that called `restore` first.
Therefore each write has the same effect twice as once, and where it does several things, they are ordered so that
`restore` plus the repeated write end where one undisturbed write would have:
- going live is recorded before the queues start: the successor starts them, the repeated write does nothing;
- a queue is stopped before its ready bit falls: the successor starts it again and the repeated write stops it;
- a reset stops the queues, then clears the status, then all else: a half-cleared page never looks like a live device;
- a repeated INTERRUPT_ACK may take an event that came in between; the serving side calls `notify_used` once more when
  all waiting accesses have been answered.

Three registers are used for every request, and the IOREQ pump answers them itself from the register page:
INTERRUPT_STATUS, INTERRUPT_ACK and QUEUE_NOTIFY. They must not grow any effect here.

Source: VIRTIO 1.4, 4.2 (Virtio Over MMIO) and 2 (Basic Facilities of a Virtio Device).
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from functools import partial

from xenvirtio.errors import GuestError, HypervisorError, ResourceError, UsageError, XenvirtioError
from xenvirtio.virtio import features as feature
from xenvirtio.virtio.bounded_log import BoundedLog
from xenvirtio.virtio.device import Device, QueueConfiguration, QueueHost
from xenvirtio.virtio.registers import (
    FEATURE_WORDS,
    QUEUE_DESC,
    QUEUE_DEVICE,
    QUEUE_DRIVER,
    QUEUE_SIZE,
    QUEUES_MAX,
    DeviceRegisters,
    QueueRegisters,
)
from xenvirtio.virtio.status import Status
from xenvirtio.virtio.transports.mmio_layout import CONFIG, CONFIG_CHANGE, MAGIC, USED_BUFFER, VERSION, Register
from xenvirtio.virtqueue.layout import QUEUE_SIZE_MAX

log = logging.getLogger("xenvirtio.virtio.mmio")

VENDOR_ID = 0x004E4558  # "XEN"; no registry exists, drivers only show it

TRANSPORT_FEATURES = (
    feature.RING_INDIRECT_DESC
    | feature.RING_EVENT_IDX
    | feature.VERSION_1
    | feature.ACCESS_PLATFORM
    | feature.IN_ORDER
    | feature.RING_RESET
)
"""Offered beside the device's own features unless the constructor is told otherwise."""

SUPPORTED_FEATURES = TRANSPORT_FEATURES | feature.NOTIFICATION_DATA
"""All that may be offered. NOTIFICATION_DATA brings nothing here: the avail index is read from the ring anyway."""

DRIVER_STATUS = Status.ACKNOWLEDGE | Status.DRIVER | Status.DRIVER_OK | Status.FEATURES_OK | Status.FAILED
"""Bits a driver may set. SUSPEND is not offered, DEVICE_NEEDS_RESET is ours."""

ALL_ONES = 0xFFFFFFFF
ACCESS_SIZES = (1, 2, 4, 8)


class MmioTransport:
    """One `device` behind its MMIO registers.

    `registers` is a zeroed page, or what a predecessor left; in the second case the first call must be `restore`.
    `name` is for the log. Raises UsageError when the device or `transport_features` ask for what cannot be offered.
    """

    def __init__(
        self,
        device: Device,
        registers: DeviceRegisters,
        queues: QueueHost,
        *,
        transport_features: int = TRANSPORT_FEATURES,
        name: str = "virtio-mmio",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._device = device
        self._registers = registers
        self._queues = queues
        self._queue_sizes = tuple(device.queue_sizes)
        self.offered_features = _offer(device.features, transport_features, self._queue_sizes)
        self._log = BoundedLog(log, name, clock)
        self._generation_lock = threading.Lock()
        self._config_seen: bytes | None = None
        self.rejected_accesses = 0
        self.failures = 0
        self._readers: dict[int, Callable[[], int]] = {
            Register.MAGIC_VALUE: lambda: MAGIC,
            Register.VERSION: lambda: VERSION,
            Register.DEVICE_ID: lambda: device.device_type,
            Register.VENDOR_ID: lambda: VENDOR_ID,
            Register.DEVICE_FEATURES: lambda: feature.word(self.offered_features, registers.device_features_sel),
            Register.QUEUE_SIZE_MAX: self._read_queue_size_max,
            Register.QUEUE_READY: self._read_queue_ready,
            Register.INTERRUPT_STATUS: lambda: registers.interrupt_status,
            Register.STATUS: lambda: registers.status,
            Register.SHM_LEN_LOW: lambda: ALL_ONES,  # all ones: no shared memory region has the selected id
            Register.SHM_LEN_HIGH: lambda: ALL_ONES,
            Register.SHM_BASE_LOW: lambda: ALL_ONES,
            Register.SHM_BASE_HIGH: lambda: ALL_ONES,
            Register.QUEUE_RESET: lambda: 0,  # a reset is over before the write that asked for it is answered
            Register.CONFIG_GENERATION: lambda: registers.config_generation,
        }
        self._writers: dict[int, Callable[[int], None]] = {
            Register.DEVICE_FEATURES_SEL: self._write_device_features_sel,
            Register.DRIVER_FEATURES: self._write_driver_features,
            Register.DRIVER_FEATURES_SEL: self._write_driver_features_sel,
            Register.QUEUE_SEL: self._write_queue_sel,
            Register.QUEUE_SIZE: partial(self._write_queue_word, QUEUE_SIZE),
            Register.QUEUE_READY: self._write_queue_ready,
            Register.QUEUE_NOTIFY: self._write_queue_notify,
            Register.INTERRUPT_ACK: self._write_interrupt_ack,
            Register.STATUS: self._write_status,
            Register.QUEUE_DESC_LOW: partial(self._write_queue_word, QUEUE_DESC),
            Register.QUEUE_DESC_HIGH: partial(self._write_queue_word, QUEUE_DESC + 4),
            Register.QUEUE_DRIVER_LOW: partial(self._write_queue_word, QUEUE_DRIVER),
            Register.QUEUE_DRIVER_HIGH: partial(self._write_queue_word, QUEUE_DRIVER + 4),
            Register.QUEUE_DEVICE_LOW: partial(self._write_queue_word, QUEUE_DEVICE),
            Register.QUEUE_DEVICE_HIGH: partial(self._write_queue_word, QUEUE_DEVICE + 4),
            Register.SHM_SEL: self._write_shm_sel,
            Register.QUEUE_RESET: self._write_queue_reset,
        }
        device.on_config_change(self._config_changed)

    # What the driver does

    def read(self, offset: int, size: int) -> int:
        """Answer a driver's read of `size` bytes, `offset` bytes into the device's range."""
        if offset >= CONFIG:
            return self._read_config(offset - CONFIG, size)
        reader = self._readers.get(offset) if size == 4 else None
        if reader is None:
            return self._reject()
        return reader()

    def write(self, offset: int, size: int, value: int) -> None:
        """Execute a driver's write. When it returns, what the write asked to stop has stopped and is unmapped."""
        try:
            self._write(offset, size, value)
        except (GuestError, HypervisorError, ResourceError) as error:
            self.fail(error)

    def _write(self, offset: int, size: int, value: int) -> None:
        if offset >= CONFIG:
            self._write_config(offset - CONFIG, size, value)
            return
        writer = self._writers.get(offset) if size == 4 else None
        if writer is None:
            self._reject()
        else:
            writer(value & ALL_ONES)

    def _reject(self) -> int:
        self.rejected_accesses += 1
        return 0

    # What happens behind the registers

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

    def restore(self) -> None:
        """Go on where the process that served these registers before was killed or closed.

        It may have died between an event and its notification, so a live driver is notified once in any case.
        """
        self._advance_generation()  # a driver may be half way through reading what has changed since
        status = self._registers.status
        if status & Status.FEATURES_OK:
            self._device.negotiate(self._registers.driver_features)
            self._device.restore_settings(self._registers.driver_settings)
        if not status & Status.DRIVER_OK:
            return
        if status & Status.DEVICE_NEEDS_RESET:
            self._notify(CONFIG_CHANGE)
            return
        try:
            self._activate(resume=True)
        except (GuestError, HypervisorError, ResourceError) as error:
            self.fail(error)
        self._notify(USED_BUFFER)

    def close(self) -> None:
        """Stop serving. The registers stay as they are, so that a successor can `restore`."""
        self._stop_queues()
        self._device.on_config_change(None)
        self._device.close()

    def _notify(self, events: int) -> None:
        self._registers.raise_events(events)
        self._queues.raise_interrupt()

    # Status and features

    def _write_device_features_sel(self, value: int) -> None:
        self._registers.device_features_sel = value

    def _write_driver_features_sel(self, value: int) -> None:
        self._registers.driver_features_sel = value

    def _write_driver_features(self, value: int) -> None:
        index = self._registers.driver_features_sel
        if index >= FEATURE_WORDS or self._registers.status & Status.FEATURES_OK:
            self._reject()
        else:
            self._registers.store_driver_features(index, value)

    def _write_status(self, value: int) -> None:
        if value == 0:
            self._reset()
            return
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
            self._queues.raise_interrupt()  # held back by _config_changed

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

    def _reset(self) -> None:
        self._stop_queues()
        self._device.reset()
        self._registers.clear()
        self._advance_generation()  # the device may have gone back to its initial configuration

    # Queues

    def _selected(self) -> QueueRegisters | None:
        index = self._registers.queue_sel
        return self._registers.queues[index] if index < len(self._queue_sizes) else None

    def _read_queue_size_max(self) -> int:
        index = self._registers.queue_sel
        return self._queue_sizes[index] if index < len(self._queue_sizes) else 0

    def _read_queue_ready(self) -> int:
        queue = self._selected()
        return int(queue is not None and queue.ready)

    def _write_queue_sel(self, value: int) -> None:
        self._registers.queue_sel = value

    def _write_queue_word(self, offset: int, value: int) -> None:
        queue = self._selected()
        if queue is None or queue.ready:
            self._reject()
        else:
            queue.store_word(offset, value)

    def _write_queue_ready(self, value: int) -> None:
        index = self._registers.queue_sel
        queue = self._selected()
        if queue is None or value > 1:
            self._reject()
        elif value == 0:
            self._queues.stop_queue(index)
            queue.set_ready(False)
        elif not queue.ready:
            self._configuration(index)
            queue.set_ready(True)
            if self.is_live:
                self._start_queue(index, resume=False)

    def _write_queue_reset(self, value: int) -> None:
        queue = self._selected()
        if queue is None or value != 1 or not self._negotiated(feature.RING_RESET):
            self._reject()
            return
        self._queues.stop_queue(self._registers.queue_sel)
        queue.clear()

    def _write_queue_notify(self, value: int) -> None:
        index = value & 0xFFFF if self._negotiated(feature.NOTIFICATION_DATA) else value
        if index < len(self._queue_sizes) and self._registers.queues[index].ready and self.is_live:
            self._queues.kick(index)
        else:
            self._reject()

    def _negotiated(self, wanted: int) -> bool:
        return bool(self._registers.status & Status.FEATURES_OK and self._registers.driver_features & wanted)

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

    # Interrupts, configuration space, shared memory

    def _write_interrupt_ack(self, value: int) -> None:
        self._registers.acknowledge(value)

    def _write_shm_sel(self, value: int) -> None:
        self._registers.shm_sel = value

    def _read_config(self, offset: int, size: int) -> int:
        """Read from configuration space; zeros past its end.

        The device may change it between two accesses, before its callback says so. So every read looks at all of it
        and moves the generation when it is not what the last one saw: no driver can piece two states together.
        """
        if size not in ACCESS_SIZES:
            return self._reject()
        content = self._device.read_config(0, self._device.config_bytes)
        if content != self._config_seen:
            if self._config_seen is not None:
                self._advance_generation()
            self._config_seen = content
        return int.from_bytes(content[offset : offset + size], "little")

    def _write_config(self, offset: int, size: int, value: int) -> None:
        in_range = size in ACCESS_SIZES and offset + size <= self._device.config_bytes
        if not in_range or not self._registers.status & Status.FEATURES_OK:
            self._reject()
            return
        data = (value & (1 << 8 * size) - 1).to_bytes(size, "little")
        for start in range(0, size, 4):  # the specification knows no access wider than 32 bits
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
                self._queues.raise_interrupt()

    def _advance_generation(self) -> None:
        with self._generation_lock:
            self._registers.config_generation = self._registers.config_generation + 1 & ALL_ONES


def _offer(device_features: int, transport_features: int, queue_sizes: tuple[int, ...]) -> int:
    """Check what a device and a transport want to offer; return the whole feature set."""
    if device_features & ~feature.DEVICE_BITS:
        raise UsageError(f"no device features: {feature.describe(device_features & ~feature.DEVICE_BITS)}")
    if transport_features & ~SUPPORTED_FEATURES:
        raise UsageError(f"not supported over MMIO: {feature.describe(transport_features & ~SUPPORTED_FEATURES)}")
    if not transport_features & feature.VERSION_1:
        raise UsageError("VERSION_1 must be offered")
    if len(queue_sizes) > QUEUES_MAX:
        raise UsageError(f"{len(queue_sizes)} queues, {QUEUES_MAX} are possible")
    for size in queue_sizes:
        if size <= 0 or size & (size - 1) or size > QUEUE_SIZE_MAX:
            raise UsageError(f"queue size {size}, allowed are powers of two up to {QUEUE_SIZE_MAX}")
    return device_features | transport_features
