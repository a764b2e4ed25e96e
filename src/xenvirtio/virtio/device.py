"""What a virtio device is to the transports, and what a transport is to the queues it starts.

A device knows neither its transport nor Xen. A transport knows no device. Both meet in these interfaces.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

from xenvirtio.memory.guest_memory import GuestMemory
from xenvirtio.virtqueue.batch import ChainBatch


class DeviceType(IntEnum):
    """Device ids. Source: VIRTIO 1.4, 5 (Device Types)."""

    NET = 1
    BLOCK = 2
    CONSOLE = 3
    ENTROPY = 4
    SCSI = 8
    VSOCK = 19
    IOMMU = 23
    FS = 26
    SCMI = 32
    I2C = 34
    GPIO = 41


class Device(Protocol):
    """One virtio device.

    Life: `negotiate` (FEATURES_OK) -> `activate` (DRIVER_OK) -> `process`... -> `reset` (back to the start) -> ... ->
    `close`, each called by the transport. `process` runs on the queue's own thread, everything else on the thread that
    serves register accesses; the transport has stopped all queues before it calls `reset` or `close`.
    """

    @property
    def device_type(self) -> DeviceType: ...

    @property
    def features(self) -> int:
        """Feature bits of the device type that are offered (bits 0-23 and 50-127), as one integer."""
        ...

    @property
    def queue_sizes(self) -> Sequence[int]:
        """Largest size of each queue, a power of two; its length is the number of queues."""
        ...

    @property
    def config_bytes(self) -> int:
        """Length of the device-specific configuration space."""
        ...

    def read_config(self, offset: int, length_bytes: int) -> bytes:
        """Return exactly `length_bytes` of configuration space; zeros past its end."""
        ...

    def write_config(self, offset: int, data: bytes) -> None:
        """Take a driver's write; writes to read-only fields are ignored."""
        ...

    def on_config_change(self, notify: Callable[[], None] | None) -> None:
        """Register what to call, from any thread, when the configuration space has changed by itself."""
        ...

    def negotiate(self, features: int) -> None:
        """The driver has settled on `features`, transport bits included; it may read configuration space next."""
        ...

    def activate(self, features: int) -> None:
        """The driver is ready; `features` is what was negotiated."""
        ...

    @property
    def driver_settings(self) -> int:
        """What the driver has set by writing to configuration space, packed into 32 bits; 0 after a reset."""
        ...

    def restore_settings(self, settings: int) -> None:
        """Take `driver_settings` of the process that served this device before; called before `activate`."""
        ...

    def process(self, queue_index: int, batch: ChainBatch, memory: GuestMemory) -> None:
        """Serve every chain of `batch` and set its `written`; all are finished on return.

        Once `batch.abandoned` is true it may stop anywhere and set `batch.unfinished`: nothing of it is completed then.

        Raises:
            GuestError: the driver broke a rule of the device; nothing of the batch is completed.
        """
        ...

    def reset(self) -> None: ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class QueueConfiguration:
    """What the driver set up for one queue. Addresses are DMA addresses, unchecked."""

    size: int
    desc: int
    driver: int
    device: int


class QueueHost(Protocol):
    """Where a transport gets its queues run: rings mapped, a thread each, notifications out."""

    def start_queue(self, index: int, configuration: QueueConfiguration, features: int, *, resume: bool) -> None:
        """Map the rings and begin to serve; with `resume` go on from used.idx, else from 0.

        Raises:
            GuestError: the rings are not in memory that the guest gave us.
        """
        ...

    def stop_queue(self, index: int) -> None:
        """Finish or give up what is being served and unmap the rings, before returning. A stopped queue: no effect."""
        ...

    def kick(self, index: int) -> None:
        """The driver has made buffers available."""
        ...

    def raise_interrupt(self) -> None:
        """Deliver the device's interrupt; its status bits are set already."""
        ...
