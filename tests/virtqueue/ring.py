"""A split queue with both of its sides over guarded memory, and guest memory for buffers and indirect tables.

`driver` behaves; whoever wants to misbehave writes descriptors and ring indices directly.
"""

from __future__ import annotations

from dataclasses import dataclass

from tests.memory.guarded import GuardedMemory
from xenvirtio.memory.regions import RegionMemory, RegionSource, RegionTable
from xenvirtio.virtqueue.batch import ChainBatch
from xenvirtio.virtqueue.driver import DriverQueue
from xenvirtio.virtqueue.layout import avail_bytes, desc_bytes, used_bytes
from xenvirtio.virtqueue.split import SplitQueue

NEXT = 1
WRITE = 2
INDIRECT = 4

GUEST_BASE = 0x4000_0000
"""DMA address of the first byte of guest memory."""

Entry = tuple[int, int, int, int]
"""A descriptor: address, length in bytes, flags, next."""


@dataclass(frozen=True, slots=True)
class Chain:
    """One chain of a batch, taken apart; buffers are (DMA address, length in bytes)."""

    head: int
    readable: list[tuple[int, int]]
    writable: list[tuple[int, int]]


class Ring:
    def __init__(
        self,
        size: int,
        *,
        event_index: bool = False,
        indirect: bool = True,
        at_end: bool = True,
        chain_capacity: int = 64,
        segment_capacity: int = 2304,
        guest_bytes: int = 64 * 1024,
    ) -> None:
        self.size = size
        self.desc = GuardedMemory(desc_bytes(size), at_end=at_end, alignment=16)
        self.avail = GuardedMemory(avail_bytes(size), at_end=at_end, alignment=2)
        self.used = GuardedMemory(used_bytes(size), at_end=at_end, alignment=4)
        self.guest = GuardedMemory(guest_bytes, at_end=at_end)
        self.memory = RegionMemory(RegionSource(RegionTable([(GUEST_BASE, guest_bytes, self.guest.address, True)])))
        areas = (self.desc.address, self.avail.address, self.used.address)
        self.driver = DriverQueue(size, *areas, event_index=event_index)
        self._options = {"event_index": event_index, "indirect": indirect}
        self._areas = areas
        self.queue = self.new_queue()
        self.batch = ChainBatch(chain_capacity, segment_capacity)

    def new_queue(self) -> SplitQueue:
        """Another device side over the same ring, as a backend makes that was started again."""
        return SplitQueue(self.size, *self._areas, self.memory, queue_index=3, **self._options)

    # --- the ring as the driver writes it, without manners

    def describe(self, index: int, address: int, length: int, flags: int = 0, following: int = 0) -> None:
        self.desc.write(16 * index, encode([(address, length, flags, following)]))

    def set_avail_flags(self, flags: int) -> None:
        self.avail.write(0, flags.to_bytes(2, "little"))

    def set_avail_index(self, index: int) -> None:
        self.avail.write(2, (index & 0xFFFF).to_bytes(2, "little"))

    def set_avail_entry(self, position: int, head: int) -> None:
        self.avail.write(4 + 2 * (position % self.size), head.to_bytes(2, "little"))

    def set_used_event(self, index: int) -> None:
        self.avail.write(4 + 2 * self.size, (index & 0xFFFF).to_bytes(2, "little"))

    def set_used_index(self, index: int) -> None:
        self.used.write(2, (index & 0xFFFF).to_bytes(2, "little"))

    def offer_heads(self, *heads: int) -> None:
        """Make chains available by their heads, whatever they are."""
        index = self.avail_index
        for position, head in enumerate(heads):
            self.set_avail_entry(index + position, head)
        self.set_avail_index(index + len(heads))

    def start_at(self, index: int) -> None:
        """Let both indices stand at `index`, as after that many chains."""
        self.set_avail_index(index)
        self.set_used_index(index)
        self.queue.resume()

    def write_table(self, offset: int, entries: list[Entry]) -> tuple[int, int]:
        """Write an indirect table into guest memory; return its DMA address and length."""
        self.guest.write(offset, encode(entries))
        return GUEST_BASE + offset, 16 * len(entries)

    # --- what can be seen

    @property
    def avail_index(self) -> int:
        return int.from_bytes(self.avail.read(2, 2), "little")

    @property
    def used_flags(self) -> int:
        return int.from_bytes(self.used.read(0, 2), "little")

    @property
    def used_index(self) -> int:
        return int.from_bytes(self.used.read(2, 2), "little")

    @property
    def avail_event(self) -> int:
        return int.from_bytes(self.used.read(4 + 8 * self.size, 2), "little")

    def used_entry(self, position: int) -> tuple[int, int]:
        raw = self.used.read(4 + 8 * (position % self.size), 8)
        return int.from_bytes(raw[:4], "little"), int.from_bytes(raw[4:], "little")

    # --- the device at work

    def take(self) -> list[Chain]:
        return decode(self.batch) if self.queue.take(self.batch) else []

    def serve(self, written: int = 0) -> bool:
        """Take and complete one batch; return whether the driver wants to be notified."""
        for chain in range(self.queue.take(self.batch)):
            self.batch.written[chain] = written
        self.queue.complete(self.batch)
        return self.queue.publish()


def encode(entries: list[Entry]) -> bytes:
    return b"".join(
        address.to_bytes(8, "little")
        + length.to_bytes(4, "little")
        + flags.to_bytes(2, "little")
        + following.to_bytes(2, "little")
        for address, length, flags, following in entries
    )


def decode(batch: ChainBatch) -> list[Chain]:
    """Take a batch apart, checking what its arrays promise about each other."""
    chains = []
    taken: set[int] = set()
    for chain in range(batch.count):
        first, count, readable = batch.first[chain], batch.segment_count[chain], batch.readable_count[chain]
        assert readable <= count
        assert first + count <= batch.segments <= batch.segment_capacity
        places = range(first, first + count)
        assert taken.isdisjoint(places)
        taken.update(places)
        buffers = [(batch.address[place], batch.length[place]) for place in places]
        assert all(length for _, length in buffers)
        assert sum(length for _, length in buffers[:readable]) == batch.readable_bytes[chain]
        assert sum(length for _, length in buffers[readable:]) == batch.writable_bytes[chain]
        assert batch.written[chain] == 0
        chains.append(Chain(batch.head[chain], buffers[:readable], buffers[readable:]))
    return chains
