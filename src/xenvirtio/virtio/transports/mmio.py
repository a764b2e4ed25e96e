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
import time
from collections.abc import Callable
from functools import partial

from xenvirtio.errors import GuestError, HypervisorError, ResourceError
from xenvirtio.virtio import features as feature
from xenvirtio.virtio.device import Device, QueueHost
from xenvirtio.virtio.registers import (
    FEATURE_WORDS,
    QUEUE_DESC,
    QUEUE_DEVICE,
    QUEUE_DRIVER,
    QUEUE_SIZE,
    DeviceRegisters,
    QueueRegisters,
)
from xenvirtio.virtio.status import Status
from xenvirtio.virtio.transports.lifecycle import (
    ALL_ONES,
    TRANSPORT_FEATURES,
    VENDOR_ID,
    DeviceLifecycle,
)
from xenvirtio.virtio.transports.mmio_layout import CONFIG, CONFIG_CHANGE, MAGIC, USED_BUFFER, VERSION, Register

log = logging.getLogger("xenvirtio.virtio.mmio")

ACCESS_SIZES = (1, 2, 4, 8)


class MmioTransport(DeviceLifecycle):
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
        super().__init__(
            device, registers, queues, transport_features=transport_features, name=name, log=log, clock=clock
        )
        self.rejected_accesses = 0
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
        else:
            self._add_status(value)

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
            self._set_ready(index)

    def _write_queue_reset(self, value: int) -> None:
        queue = self._selected()
        if queue is None or value != 1 or not self._negotiated(feature.RING_RESET):
            self._reject()
            return
        self._queues.stop_queue(self._registers.queue_sel)
        queue.clear()

    def _write_queue_notify(self, value: int) -> None:
        index = value & 0xFFFF if self._negotiated(feature.NOTIFICATION_DATA) else value
        if not self._kick(index):
            self._reject()

    # Interrupts, configuration space, shared memory

    def _write_interrupt_ack(self, value: int) -> None:
        self._registers.acknowledge(value)

    def _write_shm_sel(self, value: int) -> None:
        self._registers.shm_sel = value

    def _read_config(self, offset: int, size: int) -> int:
        """Read from configuration space; zeros past its end."""
        if size not in ACCESS_SIZES:
            return self._reject()
        return int.from_bytes(self._config_content()[offset : offset + size], "little")

    def _write_config(self, offset: int, size: int, value: int) -> None:
        in_range = size in ACCESS_SIZES and offset + size <= self._device.config_bytes
        if not in_range or not self._registers.status & Status.FEATURES_OK:
            self._reject()
            return
        self._store_config(offset, (value & (1 << 8 * size) - 1).to_bytes(size, "little"))
