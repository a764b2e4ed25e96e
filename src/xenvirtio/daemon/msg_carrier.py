"""The carriers of virtio-msg, opened: what a plan names, become a link, a descriptor to wait on, and DMA memory."""

from __future__ import annotations

import os
import secrets
import select
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from xenvirtio.daemon.dma_space import DmaSpace, WindowDma
from xenvirtio.errors import ConfigurationError
from xenvirtio.ids import PAGE_SIZE
from xenvirtio.memory.buffer import HostBuffer
from xenvirtio.memory.dma_area import DmaArea
from xenvirtio.static.plan import Channel, Region
from xenvirtio.virtio.transports.msg_datagram import DatagramLink, DmaKind
from xenvirtio.virtio.transports.msg_link import MessageLink
from xenvirtio.virtio.transports.msg_region import DMA_OFFSET, REGION_BYTES_MIN, RegionLink, Role, View
from xenvirtio.xen.capabilities import Hypervisor


class DmaAllocator(Protocol):
    """The driver end's memory (`devices.block.driver.PageAllocator`), taken back whole when a session ends."""

    def allocate(self, length_bytes: int) -> tuple[int, int]: ...
    def clear(self) -> None: ...


class Carrier(Protocol):
    """One end of a bus, opened. Its owner waits on `fileno`, calls `take_events`, then looks at `link`."""

    @property
    def link(self) -> MessageLink: ...
    @property
    def description(self) -> str:
        """How it is carried, for people."""
        ...

    @property
    def segment_bytes(self) -> int:
        """The longest piece of memory that is contiguous for the device."""
        ...

    def fileno(self) -> int: ...
    def take_events(self) -> None: ...
    def dma_space(self) -> DmaSpace:
        """The device end's way to the driver's memory."""
        ...

    def dma_allocator(self) -> DmaAllocator:
        """The driver end's memory."""
        ...

    def close(self) -> None: ...


def wait_for(carrier: Carrier, timeout_s: float) -> None:
    """Wait until the other end may have done something, at most `timeout_s`; burns no CPU."""
    poller = select.poll()
    poller.register(carrier.fileno(), select.POLLIN)
    poller.poll(int(timeout_s * 1000) + 1)
    carrier.take_events()


def _draw() -> int:
    return secrets.randbits(32)


class StaticCarrier:
    """A static shared region and a static event channel.

    Raises:
        ConfigurationError: the region is too small, or not there.
        HypervisorError: the channel cannot be bound (EBUSY: another process of this domain has it).
    """

    segment_bytes = 1 << 20

    def __init__(
        self, hypervisor: Hypervisor, region: Region, channel: Channel, role: Role, *, how: str = "auto"
    ) -> None:
        if region.size_bytes < REGION_BYTES_MIN or region.size_bytes % PAGE_SIZE:
            allowed = f"allowed: whole pages, at least {REGION_BYTES_MIN:#x}"
            raise ConfigurationError(f"region {region.id!r}: size", f"found {region.size_bytes:#x}", allowed)
        self._events = hypervisor.open_event_channels()
        try:
            # first the port, whose lock says that no other process of this domain plays this end
            port = self._events.bind_static(channel.port)
            mapped = hypervisor.map_static_region(region.id, region.address, region.size_bytes, how=how)
        except BaseException:
            self._events.close()
            raise
        self._mapping = mapped.mapping
        self._length = region.size_bytes
        view = View.CACHED if mapped.is_cached else View.UNCACHED
        self.link = RegionLink(
            self._mapping.address, self._length, role, view, lambda: self._events.notify(port), _draw
        )
        self.description = f"region {region.id} through {mapped.source}, event channel {channel.port}"

    def fileno(self) -> int:
        return self._events.fileno()

    def take_events(self) -> None:
        self._events.unmask(self._events.read())

    def dma_space(self) -> DmaSpace:
        return WindowDma(self._mapping.address, DMA_OFFSET, self._length)

    def dma_allocator(self) -> DmaArea:
        return DmaArea(self._mapping.address, DMA_OFFSET, self._length)

    def close(self) -> None:
        self._events.close()
        self._mapping.close()


class _Queue:
    """Datagrams one way within a process, and a descriptor that is readable while there may be any."""

    def __init__(self, limit: int) -> None:
        self._messages: deque[bytes] = deque()
        self._limit = limit
        self.descriptor = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        weakref.finalize(self, os.close, self.descriptor)  # both ends hold it, in threads of their own

    def put(self, data: bytes) -> bool:
        if len(self._messages) >= self._limit:
            return False
        self._messages.append(data)
        os.eventfd_write(self.descriptor, 1)
        return True

    def get(self) -> bytes | None:
        return self._messages.popleft() if self._messages else None


@dataclass(frozen=True, slots=True)
class _LocalChannel:
    incoming: _Queue
    outgoing: _Queue
    on_progress: Callable[[], None]

    def send(self, data: bytes) -> bool:
        return self.outgoing.put(data)

    def receive(self) -> bytes | None:
        data = self.incoming.get()
        if data is not None:
            self.on_progress()
        return data


class LocalCarrier:
    """One end of a bus within this process; made in pairs by `local_carriers`."""

    segment_bytes = 1 << 20

    def __init__(self, window: HostBuffer, incoming: _Queue, outgoing: _Queue) -> None:
        self._window = window
        self._incoming = incoming
        channel = _LocalChannel(incoming, outgoing, lambda: os.eventfd_write(outgoing.descriptor, 1))
        self.link = DatagramLink(channel, _draw, DmaKind.WINDOW, window.length_bytes // PAGE_SIZE)
        self.description = "in this process"

    def fileno(self) -> int:
        return self._incoming.descriptor

    def take_events(self) -> None:
        try:
            os.eventfd_read(self._incoming.descriptor)
        except BlockingIOError:
            pass

    def dma_space(self) -> DmaSpace:
        return WindowDma(self._window.address, PAGE_SIZE, self._window.length_bytes)

    def dma_allocator(self) -> DmaArea:
        return DmaArea(self._window.address, PAGE_SIZE, self._window.length_bytes)

    def close(self) -> None:
        """Nothing to do: what the two ends share goes with the last of them."""


def local_carriers(window_bytes: int = 4 << 20, messages: int = 64) -> tuple[LocalCarrier, LocalCarrier]:
    """Make both ends of a bus in this process: the driver's, the device's."""
    window = HostBuffer(window_bytes)
    to_device, to_driver = _Queue(messages), _Queue(messages)
    return LocalCarrier(window, to_driver, to_device), LocalCarrier(window, to_device, to_driver)
