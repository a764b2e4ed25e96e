"""Split virtqueue, driver side: what a guest kernel has. Tests, benches and user-space frontends stand on it.

The ring lives at host addresses that both sides see; buffers are named by DMA address, so the owner of the memory
decides what an address means (guest-physical or a grant).

Source: VIRTIO 1.4, 2.7 (Split Virtqueues), driver requirements.
"""

from __future__ import annotations

from collections.abc import Sequence

from xenvirtio.errors import PeerProtocolError, UsageError
from xenvirtio.virtqueue.layout import QUEUE_SIZE_MAX, avail_bytes, desc_bytes, used_bytes

try:
    import cython
except ImportError:
    from xenvirtio import interpreted as cython

if not cython.compiled:
    from xenvirtio.memory.raw import fence, fill, load_u16, load_u32, store_u16, store_u32, store_u64

Buffer = tuple[int, int]
"""(DMA address, length in bytes)"""


class QueueFullError(UsageError):
    """No descriptors left: collect used chains first."""


class DriverQueue:
    """The driver's half of one split queue over zeroed ring memory at `desc`, `avail`, `used` (host addresses)."""

    def __init__(self, size: int, desc: int, avail: int, used: int, *, event_index: bool = False) -> None:
        if size <= 0 or size & (size - 1) or size > QUEUE_SIZE_MAX:
            raise UsageError(f"split queue of {size} entries")
        if desc % 16 or avail % 2 or used % 4:
            raise UsageError("ring areas not aligned to 16, 2 and 4 bytes")
        self.size = size
        self._desc = desc
        self._avail = avail
        self._used = used
        self._event_index = event_index
        self._next_avail = 0
        self._announced = 0
        self._last_used = 0
        self._free = list(range(size - 1, -1, -1))
        self._chains: dict[int, tuple[object, list[int]]] = {}
        fill(desc, 0, desc_bytes(size))
        fill(avail, 0, avail_bytes(size))
        fill(used, 0, used_bytes(size))

    @property
    def free_descriptors(self) -> int:
        return len(self._free)

    @property
    def in_flight(self) -> int:
        return len(self._chains)

    def offer(self, readable: Sequence[Buffer], writable: Sequence[Buffer], token: object = None) -> int:
        """Make one chain available, device-readable buffers first; return its head.

        `token` comes back from `collect`. The device may see the chain at once.

        Raises:
            QueueFullError: fewer free descriptors than buffers.
        """
        buffers = [(address, length, 0) for address, length in readable]
        buffers += [(address, length, 2) for address, length in writable]
        return self._offer(buffers, token)

    def offer_indirect(
        self,
        table_host: int,
        table_dma: int,
        readable: Sequence[Buffer],
        writable: Sequence[Buffer],
        token: object = None,
    ) -> int:
        """Write the chain into an indirect table at `table_host` (`table_dma` to the device) and offer that."""
        buffers = [(address, length, 0) for address, length in readable]
        buffers += [(address, length, 2) for address, length in writable]
        if not buffers:
            raise UsageError("a chain without buffers")
        for position, (address, length, flags) in enumerate(buffers):
            entry = table_host + 16 * position
            last = position == len(buffers) - 1
            self._write_descriptor(entry, address, length, flags | (0 if last else 1), 0 if last else position + 1)
        return self._offer([(table_dma, 16 * len(buffers), 4)], token)

    def _offer(self, buffers: list[tuple[int, int, int]], token: object) -> int:
        if not buffers:
            raise UsageError("a chain without buffers")
        if len(self._free) < len(buffers):
            raise QueueFullError(f"{len(buffers)} descriptors wanted, {len(self._free)} free")
        indices = [self._free.pop() for _ in buffers]
        for position, (address, length, flags) in enumerate(buffers):
            last = position == len(buffers) - 1
            following = 0 if last else indices[position + 1]
            self._write_descriptor(
                self._desc + 16 * indices[position], address, length, flags | (0 if last else 1), following
            )
        head = indices[0]
        self._chains[head] = (token, indices)
        store_u16(self._avail + 4 + 2 * (self._next_avail % self.size), head)
        self._next_avail = (self._next_avail + 1) & 0xFFFF
        store_u16(self._avail + 2, self._next_avail)
        return head

    @staticmethod
    def _write_descriptor(entry: int, address: int, length: int, flags: int, following: int) -> None:
        store_u64(entry, address)
        store_u32(entry + 8, length)
        store_u16(entry + 12, flags)
        store_u16(entry + 14, following)

    def needs_kick(self) -> bool:
        """Say whether the device wants to hear of what was offered since the last call."""
        fence()
        old, new = self._announced, self._next_avail
        self._announced = new
        if old == new:
            return False
        if self._event_index:
            event = load_u16(self._used + 4 + 8 * self.size)
            return ((new - event - 1) & 0xFFFF) < ((new - old) & 0xFFFF)
        return not load_u16(self._used) & 1

    def collect(self) -> list[tuple[object, int]]:
        """Take back every used chain: (token, bytes the device says it wrote).

        Raises:
            PeerProtocolError: the device returned a chain that is not in flight.
        """
        done: list[tuple[object, int]] = []
        while load_u16(self._used + 2) != self._last_used:
            entry = self._used + 4 + 8 * (self._last_used % self.size)
            head = load_u32(entry)
            written = load_u32(entry + 4)
            if head not in self._chains:
                raise PeerProtocolError(f"used ring returns {head}, which is not in flight")
            token, indices = self._chains.pop(head)
            self._free.extend(reversed(indices))
            self._last_used = (self._last_used + 1) & 0xFFFF
            done.append((token, written))
        return done

    def enable_interrupts(self, enabled: bool = True) -> bool:
        """Ask for (or against) used-buffer notifications; return True when used chains wait already."""
        if self._event_index:
            # an index just passed comes again after 65535 entries: the closest to "off" that EVENT_IDX has
            event = self._last_used if enabled else (self._last_used - 1) & 0xFFFF
            store_u16(self._avail + 4 + 2 * self.size, event)
        else:
            store_u16(self._avail, 0 if enabled else 1)
        fence()
        return load_u16(self._used + 2) != self._last_used
