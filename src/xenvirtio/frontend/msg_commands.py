"""What `xenvirtio msg` does with a disk: show it, copy from and to it, verify it."""

from __future__ import annotations

import hashlib
import random
import statistics
import time
from dataclasses import dataclass
from typing import BinaryIO

from xenvirtio.errors import ConfigurationError
from xenvirtio.frontend.msg_disk import DiskFacts, MsgDisk
from xenvirtio.virtio import features as feature


def describe(disk: MsgDisk, carrier: str, *, pings: int) -> str:
    """Text that shows the disk and how long a message takes there and back."""
    facts = _facts(disk)
    times = []
    for word in range(pings):
        start = time.perf_counter()
        disk.bus.ping(word)
        times.append(1e6 * (time.perf_counter() - start))
    config = facts.config
    access = "read-only" if facts.features & 1 << 5 else "read and write"
    return "\n".join(
        (
            f"carrier   {carrier}",
            f"disk      {facts.size_bytes} bytes, blocks of {config.blk_size}, {access}",
            f"features  {feature.describe(facts.features)}",
            f"queues    {facts.queues}",
            f"ping      {pings} times: min {min(times):.0f}, median {statistics.median(times):.0f}, "
            f"max {max(times):.0f} us",
        )
    )


def _facts(disk: MsgDisk) -> DiskFacts:
    assert disk.facts is not None, "probe comes first"
    return disk.facts


def _check_range(disk: MsgDisk, offset: int, size_bytes: int) -> None:
    capacity = _facts(disk).size_bytes
    if offset + size_bytes > capacity:
        raise ConfigurationError(
            "--offset, --size", f"bytes {offset} to {offset + size_bytes}", f"the disk has {capacity} bytes"
        )


def read(disk: MsgDisk, offset: int, size_bytes: int, block_bytes: int, target: BinaryIO) -> None:
    _check_range(disk, offset, size_bytes)
    for start in range(offset, offset + size_bytes, block_bytes):
        target.write(disk.read(start, min(block_bytes, offset + size_bytes - start)))
    target.flush()


def write(disk: MsgDisk, offset: int, block_bytes: int, source: BinaryIO) -> str:
    """Copy all of `source`, its end filled up with zeros to a sector; return a report."""
    written = 0
    digest = hashlib.sha256()
    while True:
        block = source.read(block_bytes)
        if not block:
            break
        block += bytes(-len(block) % 512)
        _check_range(disk, offset + written, len(block))
        disk.write(offset + written, block)
        digest.update(block)
        written += len(block)
    disk.flush()
    return f"{written} bytes at {offset}, sha256 {digest.hexdigest()}"


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """Times are seconds; the digests are of the whole range."""

    size_bytes: int
    requests: int
    write_s: float
    read_s: float
    written_sha256: str
    read_sha256: str
    probes: int

    @property
    def is_good(self) -> bool:
        return self.written_sha256 == self.read_sha256

    def text(self) -> str:
        rates = [
            f"{what} {self.requests / seconds:.0f} requests/s, {self.size_bytes / seconds / (1 << 20):.2f} MiB/s"
            for what, seconds in (("write", self.write_s), ("read", self.read_s))
        ]
        again = f", probed {self.probes} times" if self.probes > 1 else ""
        verdict = "verified" if self.is_good else f"DIFFERENT: read back {self.read_sha256}"
        return "\n".join((*rates, f"sha256 {self.written_sha256}", f"{self.size_bytes} bytes {verdict}{again}"))


def verify(disk: MsgDisk, offset: int, size_bytes: int, block_bytes: int, seed: int) -> VerifyReport:
    """Overwrite a range with what `seed` gives, make it durable, read it back."""
    _check_range(disk, offset, size_bytes)
    if not size_bytes or not block_bytes:
        raise ConfigurationError("--size, --block", "found 0", "allowed: a multiple of 512")
    end = offset + size_bytes
    places = [(start, min(block_bytes, end - start)) for start in range(offset, end, block_bytes)]
    pattern = random.Random(seed)
    wrote, found = hashlib.sha256(), hashlib.sha256()
    start_s = time.perf_counter()
    for start, length in places:
        block = pattern.randbytes(length)
        disk.write(start, block)
        wrote.update(block)
    disk.flush()
    middle_s = time.perf_counter()
    for start, length in places:
        found.update(disk.read(start, length))
    end_s = time.perf_counter()
    return VerifyReport(
        size_bytes,
        len(places),
        middle_s - start_s,
        end_s - middle_s,
        wrote.hexdigest(),
        found.hexdigest(),
        disk.probes,
    )
