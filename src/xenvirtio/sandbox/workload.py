"""Verified I/O: every block says what it is, and a model says what each block may hold.

A block is 4 KiB: a header with the disk's name, the block's number and the generation of its content, then a fill
derived from the three. So a wrong block tells where it came from. The model keeps, for each block, the generations it
may hold:

- one, once a write was acknowledged or the block was read;
- the old and the new one while a write is in flight, and for ever when the guest died meanwhile or the device
  reported an error: either is right, a mixture never;
- the old one or zeros after a discard.

No two requests in flight touch the same block when one of them changes it, as no file system would do that either.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from xenvirtio.devices.block.driver import BlockDriver, Completion
from xenvirtio.devices.block.layout import F_DISCARD, F_FLUSH, F_WRITE_ZEROES, S_OK, SECTOR_BYTES

BLOCK_BYTES = 4096
SECTORS = BLOCK_BYTES // SECTOR_BYTES
RUN_MAX = 16
"""Blocks in one request."""

MAGIC = b"xenvirtio demo\0\0"
NAME_BYTES = 32
_HEADER = struct.Struct(f"<16s{NAME_BYTES}sQQ")
ZEROS = 0
"""The generation of a block of zeros."""

FIRST = 1
"""The generation an image is made with."""

MISMATCHES_KEPT = 20


def block_content(name: str, block: int, generation: int) -> bytes:
    """The bytes of one block."""
    if generation == ZEROS:
        return bytes(BLOCK_BYTES)
    header = _HEADER.pack(MAGIC, name.encode(), block, generation)
    return header + hashlib.shake_128(header).digest(BLOCK_BYTES - len(header))


def describe_block(data: bytes) -> str:
    """Say what a block claims to be, and whether it is that."""
    if data == bytes(len(data)):
        return "zeros"
    magic, raw_name, block, generation = _HEADER.unpack_from(data)
    if magic != MAGIC:
        return "bytes that were never written to any disk"
    name = raw_name.rstrip(b"\0").decode(errors="replace")
    whole = "" if data == block_content(name, block, generation) else "damaged "
    return f"{whole}generation {generation} of block {block} of {name}"


class DiskModel:
    """What the disk `name` may hold, block by block; `mismatches` says where it did not."""

    def __init__(self, name: str, blocks: int) -> None:
        self.name = name
        self.blocks = blocks
        self.mismatches: list[str] = []
        self.mismatch_count = 0
        self._allowed: list[tuple[int, ...]] = [(FIRST,)] * blocks
        self._generation = FIRST

    def create_image(self, path: Path) -> None:
        """Make the image as the model starts."""
        with path.open("wb") as image:
            for block in range(self.blocks):
                image.write(block_content(self.name, block, FIRST))

    def new_generation(self) -> int:
        self._generation += 1
        return self._generation

    def may_become(self, blocks: Iterable[int], generation: int) -> None:
        """A change to `generation` is under way."""
        for block in blocks:
            self._allowed[block] = (*self._allowed[block], generation)

    def has_become(self, blocks: Iterable[int], generation: int) -> None:
        """The change was acknowledged."""
        for block in blocks:
            self._allowed[block] = (generation,)

    def check(self, first: int, data: bytes, where: str) -> int:
        """Compare what was read from block `first` on, whole blocks; return the number of right bytes.

        A block that might have held several generations holds from now on the one that was seen.
        """
        right = 0
        for number in range(len(data) // BLOCK_BYTES):
            block = first + number
            found = data[number * BLOCK_BYTES : (number + 1) * BLOCK_BYTES]
            for generation in self._allowed[block]:
                if found == block_content(self.name, block, generation):
                    self._allowed[block] = (generation,)
                    right += BLOCK_BYTES
                    break
            else:
                self._mismatch(where, block, found)
        return right

    def check_file(self, path: Path) -> int:
        """Read the image with plain reads, no code of the devices in between; return the number of right bytes."""
        right = 0
        with path.open("rb", buffering=0) as image:
            for first in range(0, self.blocks, RUN_MAX):
                length = min(RUN_MAX, self.blocks - first) * BLOCK_BYTES
                data = image.read(length)
                right += self.check(first, data.ljust(length, b"\0"), "in the image file")
            if image.read(1):
                self._count(f"{self.name}: the image file has grown")
        return right

    def fail(self, problem: str) -> None:
        """Something other than data was wrong."""
        self._count(f"{self.name}: {problem}")

    def _mismatch(self, where: str, block: int, found: bytes) -> None:
        allowed = " or ".join("zeros" if g == ZEROS else f"generation {g}" for g in self._allowed[block])
        self._count(f"{self.name}, block {block} {where}: found {describe_block(found)}, expected {allowed}")

    def _count(self, problem: str) -> None:
        self.mismatch_count += 1
        if len(self.mismatches) < MISMATCHES_KEPT:
            self.mismatches.append(problem)


@dataclass(frozen=True, slots=True)
class _Read:
    blocks: range


@dataclass(frozen=True, slots=True)
class _Change:
    blocks: range
    generation: int
    is_exact: bool
    """Whether success means `generation`; a discard promises nothing."""


@dataclass(frozen=True, slots=True)
class _Flush:
    blocks: range = range(0)


@dataclass(slots=True)
class Workload:
    """Random verified requests on one started disk, `depth` of them in flight."""

    model: DiskModel
    block: BlockDriver
    wait: Callable[[], None]
    features: int
    random: Random
    read_only: bool = False
    depth: int = 8
    requests: int = 0
    """Completed ones."""
    bytes_right: int = 0
    """Read while running, and found right."""
    _in_flight: dict[int, _Read | _Change | _Flush] = field(default_factory=dict)
    _busy: set[int] = field(default_factory=set)

    def run(self, is_over: Callable[[], bool]) -> None:
        """Do I/O until `is_over`, then finish what is in flight.

        Raises:
            VcpuStopped: the guest died; the model knows what was in flight.
        """
        while not is_over():
            self._fill()
            self._collect()
        self.drain()

    def drain(self) -> None:
        """Finish everything in flight."""
        while self._in_flight:
            self._collect()

    def flush(self) -> None:
        """Ask for durability of everything acknowledged."""
        self._in_flight[self.block.submit_flush()] = _Flush()
        self.block.kick()
        self.drain()

    def verify_all(self) -> int:
        """Read the whole disk through the driver; return the number of right bytes."""
        right = 0
        for first in range(0, self.model.blocks, RUN_MAX):
            blocks = range(first, min(first + RUN_MAX, self.model.blocks))
            completion = self.block.read(first * SECTORS, len(blocks) * BLOCK_BYTES)
            self.requests += 1
            if completion.status != S_OK or len(completion.data) != len(blocks) * BLOCK_BYTES:
                self.model.fail(f"reading block {first} ended with status {completion.status}")
            else:
                right += self.model.check(first, completion.data, "in the guest")
        return right

    def _fill(self) -> None:
        submitted = False
        while len(self._in_flight) < self.depth:
            self._submit()
            submitted = True
        if submitted:
            self.block.kick()

    def _collect(self) -> None:
        done = self.block.collect()
        for completion in done:
            self._finish(completion)
        if not done:
            self.wait()

    def _submit(self) -> None:
        choice = self.random.random()
        if choice < 0.05 and self.features & F_FLUSH:
            self._in_flight[self.block.submit_flush()] = _Flush()
            return
        blocks = self._idle_run()
        if choice < 0.5 or self.read_only:
            request = self.block.submit_read(blocks.start * SECTORS, len(blocks) * BLOCK_BYTES)
            self._in_flight[request] = _Read(blocks)
        elif choice < 0.53 and self.features & F_WRITE_ZEROES:
            unmap = self.random.random() < 0.5
            request = self.block.submit_write_zeroes([_sectors(blocks)], unmap=unmap)
            self._change(request, _Change(blocks, ZEROS, True))
        elif choice < 0.56 and self.features & F_DISCARD:
            self._change(self.block.submit_discard([_sectors(blocks)]), _Change(blocks, ZEROS, False))
        else:
            generation = self.model.new_generation()
            data = b"".join(block_content(self.model.name, block, generation) for block in blocks)
            self._change(self.block.submit_write(blocks.start * SECTORS, data), _Change(blocks, generation, True))
        self._busy.update(blocks)

    def _change(self, request: int, change: _Change) -> None:
        """Record a submitted change. The device cannot have seen it yet: it is kicked later, from this thread."""
        self.model.may_become(change.blocks, change.generation)
        self._in_flight[request] = change

    def _idle_run(self) -> range:
        """Choose consecutive blocks that nothing in flight touches."""
        while True:
            first = self.random.randrange(self.model.blocks)
            length = 1 << self.random.randrange(RUN_MAX.bit_length())
            blocks = range(first, min(first + length, self.model.blocks))
            if self._busy.isdisjoint(blocks):
                return blocks

    def _finish(self, completion: Completion) -> None:
        operation = self._in_flight.pop(completion.request)
        self._busy.difference_update(operation.blocks)
        self.requests += 1
        if completion.status != S_OK:
            self.model.fail(f"{operation} ended with status {completion.status}")
        elif isinstance(operation, _Read):
            if len(completion.data) == len(operation.blocks) * BLOCK_BYTES:
                self.bytes_right += self.model.check(operation.blocks.start, completion.data, "in the guest")
            else:
                self.model.fail(f"{operation} returned {len(completion.data)} bytes")
        elif isinstance(operation, _Change) and operation.is_exact:
            self.model.has_become(operation.blocks, operation.generation)


def _sectors(blocks: range) -> tuple[int, int]:
    return blocks.start * SECTORS, len(blocks) * SECTORS
