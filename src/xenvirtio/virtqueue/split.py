"""Split virtqueue, device side.

What always holds between two calls:
- `last_avail` is the index of the next chain to take, `used_index` that of the next used entry; chains are completed
  in the order in which they were taken, so used.idx alone tells a successor process where to go on.
- `published` is the used.idx the driver can see. Entries between it and `used_index` are written but not yet visible.
- every value in shared memory is read once per decision, then checked, then used.

Source: VIRTIO 1.4, 2.7 (Split Virtqueues).
"""

from __future__ import annotations

from xenvirtio.errors import GuestError, UsageError
from xenvirtio.memory.buffer import HostBuffer
from xenvirtio.memory.guest_memory import GuestMemory
from xenvirtio.memory.transfer import TransferList
from xenvirtio.virtqueue.batch import ChainBatch
from xenvirtio.virtqueue.layout import (
    AVAIL_F_NO_INTERRUPT,
    DESC_F_INDIRECT,
    DESC_F_NEXT,
    DESC_F_WRITE,
    DESCRIPTOR_BYTES,
    INDIRECT_MAX,
    USED_F_NO_NOTIFY,
)

try:
    import cython
except ImportError:
    from xenvirtio import interpreted as cython

if not cython.compiled:
    from xenvirtio.memory.raw import fence, load_u16, load_u32, load_u64, store_u16, store_u32


class SplitQueue:
    """One running queue: its three areas mapped at host addresses, `size` a power of two up to 32768.

    The mappings must outlive the object. `memory` is only asked for indirect tables.

    Raises:
        GuestError: the driver placed an area across its alignment (16, 2 and 4 bytes; VIRTIO 1.4, 2.7).
    """

    def __init__(
        self,
        size: int,
        desc: int,
        avail: int,
        used: int,
        memory: GuestMemory,
        *,
        queue_index: int = 0,
        event_index: bool = False,
        indirect: bool = False,
    ) -> None:
        if size == 0 or size & (size - 1) or size > 32768:
            raise UsageError(f"split queue of {size} entries")
        if desc % 16 or avail % 2 or used % 4:
            # not a nicety: an acquire load across its alignment is SIGBUS on arm64, for the whole process
            raise GuestError("ring areas not aligned to 16, 2 and 4 bytes", queue_index=queue_index)
        self.size = size
        self.queue_index = queue_index
        self._mask = size - 1
        self._indirect_max = INDIRECT_MAX
        self._desc = desc
        self._avail = avail
        self._used = used
        self._memory = memory
        self._event_index = event_index
        self._indirect = indirect
        self.last_avail = 0
        self.used_index = 0
        self.published = 0
        self._tables = TransferList()
        self._table_buffer = HostBuffer(4096)
        self._table_base = self._table_buffer.address

    def resume(self) -> None:
        """Go on where a predecessor stopped: everything after used.idx is taken (again).

        Right because chains complete in order and block requests are idempotent until the driver sees them used.
        The predecessor may have died between used.idx and its notification: the caller notifies the driver once.
        """
        self.used_index = load_u16(self._used + 2)
        self.published = self.used_index
        self.last_avail = self.used_index

    def has_available(self) -> bool:
        """Say whether the driver has made a chain available that was not taken yet."""
        return load_u16(self._avail + 2) != self.last_avail

    def take(self, batch: ChainBatch) -> int:
        """Fill `batch` with the next available chains, as many as it holds; return how many.

        Raises:
            GuestError: a ring index, head, `next` or length is impossible, a chain loops, a table is nested or
                cannot be read, or writable buffers come before readable ones. Nothing of the batch may be used then.

        Source: VIRTIO 1.4, 2.7.5, 2.7.6 and 2.7.13; the avail index is read once.
        """
        batch.clear()
        self._tables.clear()
        available = (load_u16(self._avail + 2) - self.last_avail) & 0xFFFF
        if available > self.size:
            problem = f"avail index is {available} ahead of a queue of {self.size}"
            raise GuestError(problem, queue_index=self.queue_index)
        reserved = 0  # segments promised to the chains with indirect tables found so far
        while available and batch.count < batch.chain_capacity:
            if batch.count and batch.segments + reserved + self.size > batch.segment_capacity:
                break
            first = batch.segments
            tables = self._tables.count
            promised = self._take_chain(batch, batch.count)
            if batch.count and batch.segments + reserved + promised > batch.segment_capacity:
                # its table does not fit any more: forget the chain, the next batch reads it anew
                batch.segments = first
                self._tables.count = tables
                break
            reserved += promised
            batch.count += 1
            self.last_avail = (self.last_avail + 1) & 0xFFFF
            available -= 1
        if self._tables.count:
            self._take_tables(batch)
        return batch.count

    def _take_chain(self, batch: ChainBatch, chain: int) -> int:
        """Walk the ring descriptors of the next chain; return how many segments `_append_table` may add for it."""
        head = load_u16(self._avail + 4 + 2 * (self.last_avail & self._mask))
        batch.head[chain] = head
        batch.first[chain] = batch.segments
        batch.segment_count[chain] = 0
        batch.readable_count[chain] = 0
        batch.readable_bytes[chain] = 0
        batch.writable_bytes[chain] = 0
        batch.written[chain] = 0
        index = head
        for _ in range(self.size):
            if index >= self.size:
                raise GuestError("descriptor outside the table", queue_index=self.queue_index, descriptor_index=index)
            entry = self._desc + DESCRIPTOR_BYTES * index
            address = load_u64(entry)
            length = load_u32(entry + 8)
            flags = load_u16(entry + 12)
            if flags & DESC_F_INDIRECT:
                # what came before the table is copied behind it, so it needs its room twice
                return batch.segment_count[chain] + self._note_table(chain, index, address, length, flags)
            self._add(batch, chain, index, address, length, flags)
            if not flags & DESC_F_NEXT:
                return 0
            index = load_u16(entry + 14)
        raise GuestError("chain longer than the queue", queue_index=self.queue_index, descriptor_index=head)

    def _add(self, batch: ChainBatch, chain: int, index: int, address: int, length: int, flags: int) -> None:
        if flags & DESC_F_WRITE:
            batch.writable_bytes[chain] += length
        else:
            if batch.writable_bytes[chain]:
                raise GuestError(
                    "readable buffer after a writable one", queue_index=self.queue_index, descriptor_index=index
                )
            batch.readable_bytes[chain] += length
        if length == 0:
            return
        if batch.segments >= batch.segment_capacity:
            raise GuestError("chain of too many buffers", queue_index=self.queue_index, descriptor_index=index)
        batch.address[batch.segments] = address
        batch.length[batch.segments] = length
        batch.segments += 1
        batch.segment_count[chain] += 1
        if not flags & DESC_F_WRITE:
            batch.readable_count[chain] += 1

    def _note_table(self, chain: int, index: int, address: int, length: int, flags: int) -> int:
        """Put an indirect table on the list of those to fetch; return its number of entries."""
        if not self._indirect:
            raise GuestError(
                "indirect table without the feature", queue_index=self.queue_index, descriptor_index=index
            )
        entries = length // DESCRIPTOR_BYTES
        if flags & DESC_F_NEXT or entries == 0 or entries > self._indirect_max or length % DESCRIPTOR_BYTES:
            raise GuestError("malformed indirect table", queue_index=self.queue_index, descriptor_index=index)
        # the host address is filled in by _take_tables, once the sum of all lengths is known; it carries the chain here
        self._tables.add(address, chain, length, False)
        return entries

    def _take_tables(self, batch: ChainBatch) -> None:
        """Copy all indirect tables in one transfer, then append their segments to their chains."""
        needed = 0
        for table in range(self._tables.count):
            needed += self._tables.length[table]
        if needed > self._table_buffer.length_bytes:
            self._table_buffer = HostBuffer(needed)
            self._table_base = self._table_buffer.address
        place = self._table_base
        chains = []
        for table in range(self._tables.count):
            chains.append(self._tables.host[table])
            self._tables.host[table] = place
            place += self._tables.length[table]
        if self._memory.transfer(self._tables):
            raise GuestError("indirect table in memory that the guest did not give", queue_index=self.queue_index)
        for table in range(self._tables.count):
            self._append_table(
                batch, chains[table], self._tables.host[table], self._tables.length[table] // DESCRIPTOR_BYTES
            )

    def _append_table(self, batch: ChainBatch, chain: int, table: int, entries: int) -> None:
        prefix = batch.segment_count[chain]
        if batch.segments + prefix + entries > batch.segment_capacity:
            raise GuestError("chain of too many buffers", queue_index=self.queue_index)
        # the buffers of a chain lie together: what came before the table moves behind everything taken so far
        for position in range(prefix):
            batch.address[batch.segments + position] = batch.address[batch.first[chain] + position]
            batch.length[batch.segments + position] = batch.length[batch.first[chain] + position]
        batch.first[chain] = batch.segments
        batch.segments += prefix
        index = 0
        for _ in range(entries):
            if index >= entries:
                raise GuestError("next outside the indirect table", queue_index=self.queue_index)
            entry = table + DESCRIPTOR_BYTES * index
            flags = load_u16(entry + 12)
            if flags & DESC_F_INDIRECT:
                raise GuestError("indirect table inside an indirect table", queue_index=self.queue_index)
            self._add(batch, chain, index, load_u64(entry), load_u32(entry + 8), flags)
            if not flags & DESC_F_NEXT:
                return
            index = load_u16(entry + 14)
        raise GuestError("chain longer than its indirect table", queue_index=self.queue_index)

    def complete(self, batch: ChainBatch) -> None:
        """Write a used entry for every chain of the batch, in order. The driver sees none of them before `publish`."""
        for chain in range(batch.count):
            entry = self._used + 4 + 8 * (self.used_index & self._mask)
            store_u32(entry, batch.head[chain])
            store_u32(entry + 4, batch.written[chain])
            self.used_index = (self.used_index + 1) & 0xFFFF

    def publish(self) -> bool:
        """Show the driver all completed entries; return whether it wants to be notified of them.

        Source: VIRTIO 1.4, 2.7.8 and 2.7.7.2 (used buffer notification suppression).
        """
        old = self.published
        new = self.used_index
        if old == new:
            return False
        store_u16(self._used + 2, new)
        self.published = new
        fence()  # the new index must be visible before we look at what the driver asked for
        if self._event_index:
            event = load_u16(self._avail + 4 + 2 * self.size)
            return ((new - event - 1) & 0xFFFF) < ((new - old) & 0xFFFF)
        return not load_u16(self._avail) & AVAIL_F_NO_INTERRUPT

    def suppress_kicks(self) -> None:
        """Ask the driver not to notify while the queue is being drained anyway.

        With EVENT_IDX there is nothing to write: an avail_event left behind suppresses by itself.
        """
        if not self._event_index:
            store_u16(self._used, USED_F_NO_NOTIFY)

    def rearm_kicks(self) -> bool:
        """Ask for notifications again; return True when chains arrived meanwhile, whose kick may never come.

        Source: VIRTIO 1.4, 2.7.10 (avail_event) and 2.7.13.4.1 (the race this closes).
        """
        store_u16(self._used, 0)  # with EVENT_IDX too: a predecessor or the driver may have left something else
        if self._event_index:
            store_u16(self._used + 4 + 8 * self.size, self.last_avail)
        fence()
        return self.has_available()
