"""Virtio over MMIO, driver side: what a guest kernel does with the registers.

For tests, benches and user-space frontends. Rings are `virtqueue.driver`; this class only speaks to the transport.

Source: VIRTIO 1.4, 3.1.1 and 4.2.2.2, 4.2.3 (driver requirements).
"""

from __future__ import annotations

from typing import Protocol

from xenvirtio.errors import PeerProtocolError
from xenvirtio.virtio import features as feature
from xenvirtio.virtio.status import Status
from xenvirtio.virtio.transports.mmio_layout import CONFIG, MAGIC, VERSION, Register

RETRIES = 1000
"""Reads of a register that a device must settle; a device that does not would hold the driver for ever."""


class MmioIo(Protocol):
    """Physical memory accesses of a guest: 1, 2, 4 or 8 bytes, values unsigned."""

    def mmio_read(self, address: int, size: int) -> int: ...
    def mmio_write(self, address: int, size: int, value: int) -> None: ...


class MmioDriver:
    """The driver of the device whose registers start at guest-physical `base`.

    Any method raises PeerProtocolError when the device does not behave as one.
    """

    def __init__(self, io: MmioIo, base: int = 0) -> None:
        self._io = io
        self._base = base

    def probe(self) -> int:
        """Check that a device is there; return its type, 0 for a placeholder that is to be left alone."""
        magic, version = self._read(Register.MAGIC_VALUE), self._read(Register.VERSION)
        if magic != MAGIC or version != VERSION:
            raise PeerProtocolError(f"no virtio device: magic {magic:#x}, version {version}")
        return self._read(Register.DEVICE_ID)

    def negotiate(self, wanted: int) -> int:
        """Reset the device and agree on features; return those of `wanted` it offers, VERSION_1 always included."""
        self.reset()
        self._add_status(Status.ACKNOWLEDGE)
        self._add_status(Status.DRIVER)
        accepted = self.offered_features() & (wanted | feature.VERSION_1)
        if not accepted & feature.VERSION_1:
            self._add_status(Status.FAILED)
            raise PeerProtocolError("the device does not offer VERSION_1")
        for index in range(feature.WORDS):
            self._write(Register.DRIVER_FEATURES_SEL, index)
            self._write(Register.DRIVER_FEATURES, feature.word(accepted, index))
        self._add_status(Status.FEATURES_OK)
        if not self.status & Status.FEATURES_OK:
            self._add_status(Status.FAILED)
            raise PeerProtocolError(f"the device refuses the features {feature.describe(accepted)}")
        return accepted

    def offered_features(self) -> int:
        offered = 0
        for index in range(feature.WORDS):
            self._write(Register.DEVICE_FEATURES_SEL, index)
            offered |= self._read(Register.DEVICE_FEATURES) << 32 * index
        return offered

    def queue_size_max(self, index: int) -> int:
        """Largest size of queue `index`, 0 when there is none."""
        self._write(Register.QUEUE_SEL, index)
        return self._read(Register.QUEUE_SIZE_MAX)

    def setup_queue(self, index: int, size: int, desc: int, driver: int, device: int) -> None:
        """Make a queue ready: `size` entries, its three areas at DMA addresses, their memory zeroed."""
        if self.queue_size_max(index) < size:
            raise PeerProtocolError(f"queue {index} does not take {size} entries")
        if self._read(Register.QUEUE_READY):
            raise PeerProtocolError(f"queue {index} is in use already")
        self._write(Register.QUEUE_SIZE, size)
        self._write_address(Register.QUEUE_DESC_LOW, Register.QUEUE_DESC_HIGH, desc)
        self._write_address(Register.QUEUE_DRIVER_LOW, Register.QUEUE_DRIVER_HIGH, driver)
        self._write_address(Register.QUEUE_DEVICE_LOW, Register.QUEUE_DEVICE_HIGH, device)
        self._write(Register.QUEUE_READY, 1)

    def stop_queue(self, index: int) -> None:
        """Take a queue out of use; its memory is the driver's again."""
        self._write(Register.QUEUE_SEL, index)
        self._write(Register.QUEUE_READY, 0)
        self._wait_zero(Register.QUEUE_READY)

    def reset_queue(self, index: int) -> None:
        """Reset one queue (RING_RESET negotiated); it may be set up anew."""
        self._write(Register.QUEUE_SEL, index)
        self._write(Register.QUEUE_RESET, 1)
        self._wait_zero(Register.QUEUE_RESET)

    def driver_ok(self) -> None:
        """Set the device to work."""
        self._add_status(Status.DRIVER_OK)

    @property
    def status(self) -> Status:
        return Status(self._read(Register.STATUS))

    def reset(self) -> None:
        """Reset the device; all queue memory is the driver's again."""
        self._write(Register.STATUS, 0)
        self._wait_zero(Register.STATUS)

    def kick(self, index: int) -> None:
        """Say that buffers were made available (NOTIFICATION_DATA not negotiated)."""
        self._write(Register.QUEUE_NOTIFY, index)

    def interrupt_status(self) -> int:
        return self._read(Register.INTERRUPT_STATUS)

    def acknowledge(self, events: int) -> None:
        """Acknowledge events, before looking at the rings: what comes in meanwhile then interrupts again."""
        self._write(Register.INTERRUPT_ACK, events)

    def read_config(self, offset: int, length_bytes: int) -> bytes:
        """Read configuration space as it was at one moment.

        A length of 1, 2, 4 or 8 is one field, read in its width (8 as two halves); any other is an array of bytes.
        """
        width = {2: 2, 4: 4, 8: 4}.get(length_bytes, 1)
        for _ in range(RETRIES):
            before = self._read(Register.CONFIG_GENERATION)
            content = b"".join(
                self._io.mmio_read(self._base + CONFIG + offset + start, width).to_bytes(width, "little")
                for start in range(0, length_bytes, width)
            )
            if self._read(Register.CONFIG_GENERATION) == before:
                return content
        raise PeerProtocolError("the configuration never stays the same for one read")

    def write_config(self, offset: int, data: bytes) -> None:
        """Write configuration space, in the widths of `read_config`."""
        width = {2: 2, 4: 4, 8: 4}.get(len(data), 1)
        for start in range(0, len(data), width):
            value = int.from_bytes(data[start : start + width], "little")
            self._io.mmio_write(self._base + CONFIG + offset + start, width, value)

    def _read(self, register: Register) -> int:
        return self._io.mmio_read(self._base + register, 4)

    def _write(self, register: Register, value: int) -> None:
        self._io.mmio_write(self._base + register, 4, value)

    def _write_address(self, low: Register, high: Register, address: int) -> None:
        self._write(low, address & 0xFFFFFFFF)
        self._write(high, address >> 32)

    def _add_status(self, bit: Status) -> None:
        self._write(Register.STATUS, self._read(Register.STATUS) | bit)

    def _wait_zero(self, register: Register) -> None:
        for _ in range(RETRIES):
            if self._read(register) == 0:
                return
        raise PeerProtocolError(f"{register.name} never becomes 0")
