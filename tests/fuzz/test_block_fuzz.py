"""A driver that writes nonsense: any chains, headers and addresses end in a status or a GuestError.

What must hold besides: memory changes only where a chain offered a device-writable buffer, and the disk only below
its capacity.
"""

from __future__ import annotations

import ctypes
import os
import random

from hypothesis import given
from hypothesis import strategies as st

from tests.devices.block.rig import FIRST_REFERENCE, GUEST_DOMID, PageGrants, header, ranges
from tests.memory.guarded import GuardedMemory
from xenvirtio.devices.block.engine import BlockEngine
from xenvirtio.errors import GuestError
from xenvirtio.ids import GRANT_BIT, PAGE_SIZE
from xenvirtio.memory.address_space import AddressSpace
from xenvirtio.memory.grants import GrantMemory
from xenvirtio.memory.guest_memory import GuestMemory
from xenvirtio.memory.regions import RegionMemory, RegionSource, RegionTable
from xenvirtio.virtqueue.batch import ChainBatch

PAGES = 24
GUEST_BYTES = PAGES * PAGE_SIZE
READ_ONLY_PAGE = 20
"""From here to the last page the guest's memory may be read only."""

LOW = 0x10000
GRANTED = GRANT_BIT | FIRST_REFERENCE * PAGE_SIZE
CAPACITY_SECTORS = 64
FILE_BYTES = 96 * 512
"""Larger than the capacity: what lies behind it is not the guest's."""

HEADERS: tuple[list[int], ...] = ([16], [16], [16], [4, 12], [1, 15], [3, 3, 10])
LENGTHS = (1, 1, 4, 15, 16, 17, 20, 511, 512, 513, 1024, 4096, 5000, 32768, 1 << 20, 0xFFFFFE00, 0xFFFFFFFF)
KINDS = (0, 0, 0, 1, 1, 1, 4, 8, 11, 13, 2, 14, 0xFFFFFFFF)
SECTORS = (0, 0, 1, 8, 60, 63, 64, 65, 1 << 32, (1 << 55) - 1, (1 << 64) - 1)
FAR = (
    0,
    LOW - 1,
    LOW + GUEST_BYTES - 3,
    1 << 40,
    (1 << 63) - 8,
    GRANT_BIT,
    GRANTED - 4,
    (1 << 64) - 1,
    (1 << 64) - 4096,
)


class Driver:
    """Makes chains by a seeded random generator and remembers where the device may write."""

    names: tuple[int, ...]

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.memory = GuardedMemory(GUEST_BYTES)
        self.memory.write(0, self.random.randbytes(GUEST_BYTES))
        self.may_change = bytearray(GUEST_BYTES)
        self.regions = RegionMemory(
            RegionSource(
                RegionTable(
                    [
                        (LOW, 7 * PAGE_SIZE, self.memory.address, True),
                        (LOW + 7 * PAGE_SIZE, 13 * PAGE_SIZE, self.memory.address + 7 * PAGE_SIZE, True),
                        (
                            LOW + READ_ONLY_PAGE * PAGE_SIZE,
                            (PAGES - READ_ONLY_PAGE) * PAGE_SIZE,
                            self.memory.address + READ_ONLY_PAGE * PAGE_SIZE,
                            False,
                        ),
                    ]
                )
            )
        )
        grants = PageGrants(self.memory.address, PAGES)
        grants.read_only = {FIRST_REFERENCE + page for page in range(READ_ONLY_PAGE, PAGES)}
        grants.revoked = {FIRST_REFERENCE + 3}
        self.granted = GrantMemory(grants, GUEST_DOMID)

    def fill(self, batch: ChainBatch) -> GuestMemory:
        """Make the chains of a batch; return the memory to serve it with."""
        memory, self.names = self.random.choice(
            (
                (self.regions, (LOW,)),
                (self.granted, (GRANTED,)),
                (AddressSpace(self.regions, self.granted), (LOW, GRANTED)),
            )
        )
        batch.clear()
        for chain in range(self.random.randint(1, 12)):
            self._add_chain(batch, chain)
            batch.count += 1
        return memory

    def _add_chain(self, batch: ChainBatch, chain: int) -> None:
        batch.head[chain] = chain
        batch.first[chain] = batch.segments
        batch.written[chain] = 0
        odd = self.random.random() < 0.05
        base = self.random.choice(self.names)
        readable = self._buffers(base, self._lengths() if odd else self.random.choice(HEADERS) + self._lengths())
        writable = self._buffers(base, self._lengths()) + ([] if odd else [(base + self.random.randrange(64), 1)])
        self._write_header(readable)
        for address, length in readable + writable:
            batch.address[batch.segments] = address
            batch.length[batch.segments] = length
            batch.segments += 1
        for address, length in writable:
            self._note_writable(address, length)
        batch.segment_count[chain] = len(readable) + len(writable)
        batch.readable_count[chain] = len(readable)
        batch.readable_bytes[chain] = sum(length for _, length in readable)
        batch.writable_bytes[chain] = sum(length for _, length in writable)

    def _lengths(self) -> list[int]:
        if self.random.random() < 0.5:
            return self.random.choices((512, 512, 1024, 4096), k=self.random.randint(0, 3))
        return self.random.choices(LENGTHS, k=self.random.randint(0, 5))

    def _buffers(self, base: int, lengths: list[int]) -> list[tuple[int, int]]:
        return [(self._address(base, length), length) for length in lengths]

    def _address(self, base: int, length: int) -> int:
        if self.random.random() < 0.04:
            return self.random.choice(FAR)
        return base + self.random.randrange(PAGE_SIZE, max(GUEST_BYTES - length, PAGE_SIZE + 1))

    def _write_header(self, readable: list[tuple[int, int]]) -> None:
        """Put something like a request where the chain starts, as far as that is memory."""
        kind = self.random.choice(KINDS)
        content = header(kind, self.random.choice(SECTORS))
        content += ranges(*((self.random.choice(SECTORS), self.random.randint(0, 9), 0) for _ in range(3)))
        for address, length in readable:
            offset = self._offset(address)
            part, content = content[:length], content[length:]
            if offset is not None and part and offset + len(part) <= GUEST_BYTES:
                self.memory.write(offset, part)

    @staticmethod
    def _offset(address: int) -> int | None:
        for base in (LOW, GRANTED):
            if base <= address < base + GUEST_BYTES:
                return address - base
        return None

    def _note_writable(self, address: int, length: int) -> None:
        """Mark what [address, address + length) covers of our memory under either name, also after a wrap."""
        for base in (LOW, GRANTED, LOW + (1 << 64), GRANTED + (1 << 64)):
            start = max(address - base, 0)
            end = min(address + length - base, READ_ONLY_PAGE * PAGE_SIZE)
            if start < end:
                self.may_change[start:end] = b"\1" * (end - start)


@given(st.integers(0, 2**32), st.sampled_from([PAGE_SIZE, 4 << 20]), st.booleans(), st.booleans())
def test_nonsense_from_the_driver(seed: int, arena_bytes: int, writethrough: bool, read_only: bool) -> None:
    driver = Driver(seed)
    fd = os.memfd_create("disk", os.MFD_CLOEXEC)
    try:
        tail = b"\x5a" * (FILE_BYTES - CAPACITY_SECTORS * 512)
        os.pwrite(fd, bytes(CAPACITY_SECTORS * 512) + tail, 0)
        engine = BlockEngine(fd, fd, serial=b"fuzz", arena_bytes=arena_bytes)
        engine.capacity_sectors = CAPACITY_SECTORS
        engine.writethrough = writethrough
        engine.read_only = read_only
        engine.discard = engine.write_zeroes = engine.may_unmap = True
        batch = ChainBatch()
        for _ in range(6):
            memory = driver.fill(batch)
            before = driver.memory.contents()
            try:
                engine.process(batch, memory)
            except GuestError:
                pass
            else:
                check_answers(driver, batch)
            after = driver.memory.contents()
            changed = [n for n in range(GUEST_BYTES) if before[n] != after[n]] if before != after else []
            assert all(driver.may_change[n] for n in changed)
            driver.may_change = bytearray(GUEST_BYTES)
        assert os.fstat(fd).st_size == FILE_BYTES
        assert os.pread(fd, FILE_BYTES, CAPACITY_SECTORS * 512) == tail
        if read_only:
            assert os.pread(fd, CAPACITY_SECTORS * 512, 0) == bytes(CAPACITY_SECTORS * 512)
    finally:
        os.close(fd)


def check_answers(driver: Driver, batch: ChainBatch) -> None:
    """Used lengths never exceed what was offered, and a status byte of ours has one of the three values."""
    places = [
        (batch.address[n] + batch.length[n] - 1) & (2**64 - 1)
        for n in (batch.first[c] + batch.segment_count[c] - 1 for c in range(batch.count))
    ]
    for chain in range(batch.count):
        assert 1 <= batch.written[chain] <= batch.writable_bytes[chain]
    offset = driver._offset(places[-1])
    assert offset is not None, "a status out of reach is a GuestError"
    # earlier ones may have been overwritten by a buffer of a later request
    assert ctypes.string_at(driver.memory.address + offset, 1)[0] in (0, 1, 2)
