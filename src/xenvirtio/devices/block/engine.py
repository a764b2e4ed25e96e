"""Serves the requests of one block queue: a batch of descriptor chains in, file I/O, results in guest memory.

A batch is served in rounds. A round takes requests in avail order until its buffers are full (nearly always: all of
them) and consists of

    plan     each request gets iovecs: straight into guest memory where `locate` gives addresses, else into the arena
    inbound  one transfer fetches what is written or discarded from the arena
    execute  file I/O, request by request; then one fdatasync, if a flush or the writethrough mode asks for it
    outbound one transfer carries what was read, and the status bytes

and before the first round one transfer fetches all headers. So a batch of reads of granted memory costs two
grant-copy calls and a batch of writes three. A request larger than the arena goes on in the next round.

What always holds:
- requests are executed one after the other in avail order, so a batch leaves what a sequence would have left, and
  the fdatasync of a round comes after every write of that round and of all earlier ones: it serves all its flushes.
- guest memory is read once, into ours; only values checked there are used. A transfer that fails for one request
  gives that request IOERR.
- each request may be executed again by a successor process: none depends on what was there before.

Source: VIRTIO 1.4, 5.2.6 (Device Operation).
"""

from __future__ import annotations

from array import array

from xenvirtio.devices.block.layout import (
    HEADER_BYTES,
    ID_BYTES,
    MAX_DISCARD_SECTORS,
    MAX_RANGES,
    MAX_WRITE_ZEROES_SECTORS,
    RANGE_BYTES,
    RANGE_F_UNMAP,
    S_IOERR,
    S_OK,
    S_UNSUPP,
    SECTOR_BYTES,
    T_DISCARD,
    T_FLUSH,
    T_GET_ID,
    T_IN,
    T_OUT,
    T_WRITE_ZEROES,
)
from xenvirtio.errors import GuestError
from xenvirtio.memory.buffer import HostBuffer
from xenvirtio.memory.guest_memory import GuestMemory
from xenvirtio.memory.transfer import TransferList
from xenvirtio.virtqueue.batch import ChainBatch

try:
    import cython
except ImportError:
    from xenvirtio import interpreted as cython

if not cython.compiled:
    from xenvirtio.memory.raw import (
        fallocate,
        fdatasync,
        ioctl,
        load_u32,
        load_u64,
        preadv,
        pwritev,
        store_u8,
        store_u64,
    )

ARENA_BYTES = 4 << 20
"""Where data lies that the file cannot reach in place. Untouched pages of it cost nothing."""

PAGE_SIZE = 4096
"""Data in the arena starts on a page: O_DIRECT wants it, and a copy of a granted page then is one segment, not two."""

VECTORS = 4096
VECTOR_BYTES = 16
"""struct iovec: address u64, length u64."""

VECTORS_PER_CALL = 1024
"""IOV_MAX of Linux."""

ZERO_BYTES = 1 << 20

LARGEST_DATA = 0xFFFFFE00
"""Used lengths have 32 bits: whole sectors that fit together with the status byte."""

LARGEST_PART = 64 << 20
"""What one request moves before the engine looks whether its batch is still wanted."""

ADDRESS_MASK = 0xFFFFFFFFFFFFFFFF
"""A buffer may claim to reach past the end of the address space; its addresses then wrap, and are checked as such."""

EINTR = 4
EFAULT = 14
EINVAL = 22
EOPNOTSUPP = 95

KEEP_SIZE = 0x01
PUNCH_HOLE = 0x02
ZERO_RANGE = 0x10
"""include/uapi/linux/falloc.h."""

BLKDISCARD = 0x1277
"""include/uapi/linux/fs.h; takes u64 start and u64 length in bytes."""


class BlockEngine:
    """What one queue thread runs. The disk is named by descriptors that its owner keeps open.

    `fd` is what data goes through; with O_DIRECT (`direct_alignment` not 0, a power of two up to a page) `buffered_fd`
    is the same disk without it, for requests that are not aligned. The plain attributes are settings, changed by the
    device from other threads between two batches or during one, and counters.
    """

    def __init__(
        self,
        fd: int,
        buffered_fd: int,
        *,
        direct_alignment: int = 0,
        is_block_device: bool = False,
        queue_index: int = 0,
        serial: bytes = b"",
        arena_bytes: int = ARENA_BYTES,
    ) -> None:
        self.capacity_sectors = 0
        self.read_only = False
        self.writethrough = True
        self.discard = False
        self.write_zeroes = False
        self.may_unmap = False

        self.requests = 0
        self.errors = 0
        self.bytes_read = 0
        self.bytes_written = 0
        self.syncs = 0

        self._fd = fd
        self._buffered_fd = buffered_fd
        self._direct_alignment = direct_alignment
        self._direct_in_place = True
        self._is_block_device = is_block_device
        self._queue_index = queue_index
        self._arena_used = 0
        self._vectors_used = 0
        self._inbound = TransferList()
        self._outbound = TransferList()
        self._reserve(64)

        arena = HostBuffer(arena_bytes)
        self._arena_bytes = arena.length_bytes
        vectors = HostBuffer(VECTORS * VECTOR_BYTES)
        zeros = HostBuffer(ZERO_BYTES)
        small = HostBuffer(PAGE_SIZE)
        small.view[:ID_BYTES] = serial.ljust(ID_BYTES, b"\0")
        self._buffers = (arena, vectors, zeros, small)
        self._arena = arena.address
        self._vectors = vectors.address
        self._zeros = zeros.address
        self._serial = small.address
        self._scratch = small.address + 64  # one iovec, or the argument of an ioctl

    def _reserve(self, chains: int) -> None:
        """Make room for the state of `chains` requests."""
        self._chain_capacity = chains
        self._header_buffer = HostBuffer(chains * HEADER_BYTES)
        self._headers = self._header_buffer.address
        self._status_buffer = HostBuffer(chains)
        self._status_base = self._status_buffer.address
        self._status = memoryview(array("B", bytes(chains)))
        self._kind = memoryview(array("I", bytes(4 * chains)))
        self._size = memoryview(array("Q", bytes(8 * chains)))  # data bytes of the request
        self._left = memoryview(array("Q", bytes(8 * chains)))  # of these, to be done in this round or later
        self._part = memoryview(array("Q", bytes(8 * chains)))  # of these, to be done in this round
        self._offset = memoryview(array("Q", bytes(8 * chains)))  # where in the file the part starts
        self._segment = memoryview(array("I", bytes(4 * chains)))  # cursor in the chain: buffer ...
        self._skip = memoryview(array("I", bytes(4 * chains)))  # ... and bytes of it that are used up
        self._place = memoryview(array("Q", bytes(8 * chains)))  # the part in the arena, 0 when in guest memory
        self._vector = memoryview(array("I", bytes(4 * chains)))
        self._vector_count = memoryview(array("I", bytes(4 * chains)))
        self._copies_first = memoryview(array("I", bytes(4 * chains)))  # its entries in the current transfer list
        self._copies_end = memoryview(array("I", bytes(4 * chains)))

    def process(self, batch: ChainBatch, memory: GuestMemory) -> None:
        """Serve every chain of `batch` and set its `written`.

        Raises:
            GuestError: a chain has no room for a header or a status byte, or its status byte lies in memory that
                the guest did not give.
        """
        if batch.count > self._chain_capacity:
            self._reserve(batch.count)
        self._fetch_headers(batch, memory)
        for chain in range(batch.count):
            if self._status[chain] == S_OK:
                self._status[chain] = self._admit(batch, chain)
        first = 0
        while first < batch.count:
            first = self._run_round(batch, memory, first)
            if batch.unfinished:
                return
        for chain in range(batch.count):
            self._account(batch, chain)

    def _fetch_headers(self, batch: ChainBatch, memory: GuestMemory) -> None:
        self._inbound.clear()
        for chain in range(batch.count):
            if batch.readable_bytes[chain] < HEADER_BYTES:
                raise GuestError("block request without a whole header", queue_index=self._queue_index)
            if batch.writable_bytes[chain] == 0:
                raise GuestError("block request without room for its status", queue_index=self._queue_index)
            self._status[chain] = S_OK
            self._size[chain] = 0
            self._left[chain] = 0
            self._segment[chain] = batch.first[chain]
            self._skip[chain] = 0
            self._copies_first[chain] = self._inbound.count
            self._add_copies(batch, self._inbound, chain, self._headers + HEADER_BYTES * chain, HEADER_BYTES, False)
        if memory.transfer(self._inbound):
            self._fail_where_copies_failed(self._inbound, 0, batch.count)

    def _admit(self, batch: ChainBatch, chain: int) -> int:
        """Check a request against the disk and note what it moves; return the status it has so far."""
        header = self._headers + HEADER_BYTES * chain
        kind = load_u32(header)
        sector = load_u64(header + 8)
        readable = batch.readable_bytes[chain] - HEADER_BYTES
        writable = batch.writable_bytes[chain] - 1
        self._kind[chain] = kind
        if kind == T_IN:
            self._skip_to_writable(batch, chain)
            return self._admit_data(chain, sector, writable)
        if kind == T_OUT:
            return S_IOERR if self.read_only else self._admit_data(chain, sector, readable)
        if kind == T_FLUSH:
            return S_OK
        if kind == T_GET_ID:
            self._skip_to_writable(batch, chain)
            self._size[chain] = writable if writable < ID_BYTES else ID_BYTES
            return S_OK
        if kind in (T_DISCARD, T_WRITE_ZEROES):
            if self.read_only:
                return S_IOERR
            if not (self.discard if kind == T_DISCARD else self.write_zeroes):
                return S_UNSUPP
            if readable == 0 or readable % RANGE_BYTES or readable > MAX_RANGES * RANGE_BYTES:
                return S_IOERR
            self._size[chain] = readable
            self._left[chain] = readable
            return S_OK
        return S_UNSUPP

    def _admit_data(self, chain: int, sector: int, length: int) -> int:
        if length % SECTOR_BYTES or length > LARGEST_DATA:
            return S_IOERR
        if not self._is_on_disk(sector, length // SECTOR_BYTES):
            return S_IOERR
        self._size[chain] = length
        self._left[chain] = length
        self._offset[chain] = sector * SECTOR_BYTES
        return S_OK

    def _is_on_disk(self, sector: int, sectors: int) -> bool:
        capacity = self.capacity_sectors  # read once: it may change under us
        return sector <= capacity and sectors <= capacity - sector

    def _skip_to_writable(self, batch: ChainBatch, chain: int) -> None:
        self._segment[chain] = batch.first[chain] + batch.readable_count[chain]
        self._skip[chain] = 0

    # rounds

    def _run_round(self, batch: ChainBatch, memory: GuestMemory, first: int) -> int:
        """Serve requests from `first` on, as many as fit; return the one to go on with."""
        end = self._plan(batch, memory, first)
        if self._inbound.count and memory.transfer(self._inbound):
            self._fail_where_copies_failed(self._inbound, first, end)
        for chain in range(first, end):
            if batch.abandoned:
                batch.unfinished = True
                return batch.count
            if self._status[chain] == S_OK:
                self._status[chain] = self._execute(batch, chain)
        self._sync_if_needed(first, end)
        self._answer(batch, memory, first, end)
        return end - 1 if self._left[end - 1] else end

    def _plan(self, batch: ChainBatch, memory: GuestMemory, first: int) -> int:
        """Give the next requests their iovecs and list the inbound copies; return the end of the round."""
        self._inbound.clear()
        self._arena_used = 0
        self._vectors_used = 0
        for chain in range(first, batch.count):
            self._part[chain] = 0
            self._copies_first[chain] = self._inbound.count
            self._copies_end[chain] = self._inbound.count
            if self._status[chain] != S_OK or self._left[chain] == 0:
                continue
            if self._vectors_used == VECTORS:
                return chain
            kind = self._kind[chain]
            if (kind != T_IN and kind != T_OUT) or not self._plan_in_place(batch, memory, chain):
                if not self._plan_in_arena(chain):
                    return chain
                if kind != T_IN:
                    self._add_copies(batch, self._inbound, chain, self._place[chain], self._part[chain], False)
            if self._part[chain] < self._left[chain]:
                return chain + 1
        return batch.count

    def _plan_in_place(self, batch: ChainBatch, memory: GuestMemory, chain: int) -> bool:
        """Point iovecs at the buffers themselves; False where some of them cannot be addressed (or not by O_DIRECT)."""
        direct = self._is_direct(self._offset[chain], self._left[chain])
        if direct and not self._direct_in_place:
            return False
        misaligned = self._direct_alignment - 1 if direct else 0
        segment = self._segment[chain]
        skip = self._skip[chain]
        wanted = self._left[chain]
        if wanted > LARGEST_PART:
            wanted = LARGEST_PART
        left = wanted
        count = self._vectors_used
        while left and count < VECTORS:
            run = batch.length[segment] - skip
            if run > left:
                run = left
            place = memory.locate((batch.address[segment] + skip) & ADDRESS_MASK, run, self._kind[chain] == T_IN)
            if place == 0 or (place | memory.run) & misaligned:
                return False
            run = memory.run
            vector = self._vectors + VECTOR_BYTES * count
            store_u64(vector, place)
            store_u64(vector + 8, run)
            count += 1
            left -= run
            skip += run
            if skip == batch.length[segment]:
                segment += 1
                skip = 0
        self._segment[chain] = segment
        self._skip[chain] = skip
        self._part[chain] = wanted - left
        self._place[chain] = 0
        self._vector[chain] = self._vectors_used
        self._vector_count[chain] = count - self._vectors_used
        self._vectors_used = count
        return True

    def _plan_in_arena(self, chain: int) -> bool:
        """Reserve room in the arena, for a piece of the request when it is the only one there; False when full."""
        part = self._left[chain]
        room = self._arena_bytes - self._arena_used
        if part > room:
            if self._arena_used:
                return False
            part = room
        self._part[chain] = part
        self._place[chain] = self._arena + self._arena_used
        self._arena_used += (part + PAGE_SIZE - 1) // PAGE_SIZE * PAGE_SIZE
        vector = self._vectors + VECTOR_BYTES * self._vectors_used
        store_u64(vector, self._place[chain])
        store_u64(vector + 8, part)
        self._vector[chain] = self._vectors_used
        self._vector_count[chain] = 1
        self._vectors_used += 1
        return True

    def _add_copies(
        self, batch: ChainBatch, copies: TransferList, chain: int, host: int, length: int, to_guest: bool
    ) -> None:
        """List the copy of the next `length` bytes of the chain from or to `host`, and step over them.

        The caller knows that the chain has them.
        """
        segment = self._segment[chain]
        skip = self._skip[chain]
        while length:
            run = batch.length[segment] - skip
            if run > length:
                run = length
            copies.add((batch.address[segment] + skip) & ADDRESS_MASK, host, run, to_guest)
            host += run
            length -= run
            skip += run
            if skip == batch.length[segment]:
                segment += 1
                skip = 0
        self._segment[chain] = segment
        self._skip[chain] = skip
        self._copies_end[chain] = copies.count

    def _fail_where_copies_failed(self, copies: TransferList, first: int, end: int) -> None:
        for chain in range(first, end):
            for index in range(self._copies_first[chain], self._copies_end[chain]):
                if copies.failed[index]:
                    self._status[chain] = S_IOERR

    # the disk

    def _execute(self, batch: ChainBatch, chain: int) -> int:
        """Do this round's part of one request; return its status."""
        kind = self._kind[chain]
        if kind in (T_IN, T_OUT):
            return S_OK if self._move(chain, kind == T_OUT) else S_IOERR
        if kind in (T_DISCARD, T_WRITE_ZEROES):
            return self._apply_ranges(batch, chain, kind == T_DISCARD)
        return S_OK

    def _is_direct(self, offset: int, length: int) -> bool:
        return self._direct_alignment != 0 and not (offset | length) & (self._direct_alignment - 1)

    def _move(self, chain: int, is_write: bool) -> bool:
        """Read or write the part of a request; return whether all of it was moved."""
        offset = self._offset[chain]
        left = self._part[chain]
        vector = self._vectors + VECTOR_BYTES * self._vector[chain]
        count = self._vector_count[chain]
        fd = self._fd if self._is_direct(offset, left) else self._buffered_fd
        while left:
            in_call = count if count < VECTORS_PER_CALL else VECTORS_PER_CALL
            if is_write:
                moved = pwritev(fd, vector, in_call, offset)
            else:
                moved = preadv(fd, vector, in_call, offset)
            if moved == -EINTR:
                continue
            if (moved == -EFAULT or moved == -EINVAL) and fd != self._buffered_fd:
                # Foreign mappings have no struct pages and O_DIRECT refuses them; other I/O works. Later ones bounce.
                self._direct_in_place = self._direct_in_place and moved != -EFAULT
                fd = self._buffered_fd
                continue
            if moved <= 0:  # 0 is the end of a file that has shrunk
                return False
            fd = self._buffered_fd if moved != left else fd  # what is left over need not be aligned
            offset += moved
            left -= moved
            while count and load_u64(vector + 8) <= moved:
                moved -= load_u64(vector + 8)
                vector += VECTOR_BYTES
                count -= 1
            if moved:
                store_u64(vector, load_u64(vector) + moved)
                store_u64(vector + 8, load_u64(vector + 8) - moved)
        self._offset[chain] = offset
        return True

    def _apply_ranges(self, batch: ChainBatch, chain: int, is_discard: bool) -> int:
        """Discard or zero the ranges of one request, after all of them were checked; return its status."""
        allowed = 0 if is_discard else RANGE_F_UNMAP
        limit = MAX_DISCARD_SECTORS if is_discard else MAX_WRITE_ZEROES_SECTORS
        start = self._place[chain]
        ranges = self._part[chain] // RANGE_BYTES
        for index in range(ranges):
            if load_u32(start + RANGE_BYTES * index + 12) & ~allowed:
                return S_UNSUPP
        for index in range(ranges):
            entry = start + RANGE_BYTES * index
            sectors = load_u32(entry + 8)
            if sectors > limit or not self._is_on_disk(load_u64(entry), sectors):
                return S_IOERR
        for index in range(ranges):
            entry = start + RANGE_BYTES * index
            offset = load_u64(entry) * SECTOR_BYTES
            length = load_u32(entry + 8) * SECTOR_BYTES
            if length == 0:
                continue
            if batch.abandoned:
                batch.unfinished = True
                return S_IOERR  # which nobody gets to see
            if is_discard:
                done = self._discard_range(offset, length)
            else:
                done = self._zero_range(offset, length, load_u32(entry + 12) != 0)
            if not done:
                return S_IOERR
        return S_OK

    def _discard_range(self, offset: int, length: int) -> bool:
        result = -EINTR
        while result == -EINTR:
            if self._is_block_device:
                store_u64(self._scratch, offset)
                store_u64(self._scratch + 8, length)
                result = ioctl(self._buffered_fd, BLKDISCARD, self._scratch)
            else:
                result = fallocate(self._buffered_fd, PUNCH_HOLE | KEEP_SIZE, offset, length)
        return result >= 0 or result == -EOPNOTSUPP  # a discard is a hint

    def _zero_range(self, offset: int, length: int, unmap: bool) -> bool:
        """Make a range read as zeros: by a hole, by the file system's own means, or by writing them."""
        if unmap and self.may_unmap and fallocate(self._buffered_fd, PUNCH_HOLE | KEEP_SIZE, offset, length) >= 0:
            return True
        if fallocate(self._buffered_fd, ZERO_RANGE | KEEP_SIZE, offset, length) >= 0:
            return True
        while length:
            store_u64(self._scratch, self._zeros)
            store_u64(self._scratch + 8, length if length < ZERO_BYTES else ZERO_BYTES)
            moved = pwritev(self._buffered_fd, self._scratch, 1, offset)
            if moved == -EINTR:
                continue
            if moved <= 0:
                return False
            offset += moved
            length -= moved
        return True

    def _sync_if_needed(self, first: int, end: int) -> None:
        """Make the round durable where somebody relies on it; who did gets IOERR when that fails."""
        writethrough = self.writethrough
        needed = False
        for chain in range(first, end):
            if self._status[chain] == S_OK and self._relies_on_sync(chain, writethrough):
                needed = True
        if not needed:
            return
        self.syncs += 1
        result = fdatasync(self._buffered_fd)
        while result == -EINTR:
            result = fdatasync(self._buffered_fd)
        if result >= 0:
            return
        for chain in range(first, end):
            if self._status[chain] == S_OK and self._relies_on_sync(chain, writethrough):
                self._status[chain] = S_IOERR

    def _relies_on_sync(self, chain: int, writethrough: bool) -> bool:
        kind = self._kind[chain]
        if kind == T_FLUSH:
            return True
        return writethrough and kind in (T_OUT, T_DISCARD, T_WRITE_ZEROES)

    # answers

    def _answer(self, batch: ChainBatch, memory: GuestMemory, first: int, end: int) -> None:
        """Carry out what was read, and the status of every request that is finished.

        `left` is 0 from here on for those: the last one of a round may go on in the next.
        """
        self._outbound.clear()
        for chain in range(first, end):
            self._copies_first[chain] = self._outbound.count
            self._copies_end[chain] = self._outbound.count
            if self._status[chain] == S_OK:
                self._left[chain] -= self._part[chain]
                self._add_results(batch, chain)
            else:
                self._left[chain] = 0
            if self._left[chain] == 0:
                self._add_status(batch, self._outbound, chain)
        if memory.transfer(self._outbound):
            self._answer_failures(batch, memory, first, end)

    def _add_results(self, batch: ChainBatch, chain: int) -> None:
        if self._kind[chain] == T_GET_ID:
            self._add_copies(batch, self._outbound, chain, self._serial, self._size[chain], True)
        elif self._kind[chain] == T_IN and self._part[chain] and self._place[chain]:
            self._add_copies(batch, self._outbound, chain, self._place[chain], self._part[chain], True)

    def _add_status(self, batch: ChainBatch, copies: TransferList, chain: int) -> None:
        """List the copy of the status, which is the last byte of the last buffer, however the chain is cut."""
        last = batch.first[chain] + batch.segment_count[chain] - 1
        store_u8(self._status_base + chain, self._status[chain])
        copies.add((batch.address[last] + batch.length[last] - 1) & ADDRESS_MASK, self._status_base + chain, 1, True)
        self._copies_end[chain] = copies.count

    def _answer_failures(self, batch: ChainBatch, memory: GuestMemory, first: int, end: int) -> None:
        """Tell the requests whose results did not reach the guest, overwriting a status that said otherwise.

        Raises:
            GuestError: a status byte is out of reach. Completing such a request would leave the driver with
                whatever the byte held before, which may well be "ok".
        """
        self._inbound.clear()
        for chain in range(first, end):
            for index in range(self._copies_first[chain], self._copies_end[chain]):
                if self._outbound.failed[index]:
                    self._status[chain] = S_IOERR
                    self._left[chain] = 0
                    self._add_status(batch, self._inbound, chain)
                    break
        if memory.transfer(self._inbound):
            raise GuestError("status byte in memory that the guest did not give", queue_index=self._queue_index)

    def _account(self, batch: ChainBatch, chain: int) -> None:
        self.requests += 1
        kind = self._kind[chain]
        batch.written[chain] = 1
        if self._status[chain] != S_OK:
            self.errors += 1
        elif kind == T_OUT:
            self.bytes_written += self._size[chain]
        elif kind in (T_IN, T_GET_ID):
            self.bytes_read += self._size[chain]
            batch.written[chain] = self._size[chain] + 1
