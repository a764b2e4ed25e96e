"""Hostile ring memory: whatever lies there, the device side ends in a batch that keeps its promises or in GuestError.

Ring areas and guest memory stand between pages that nobody may touch, so a single byte read or written outside ends the
run with SIGSEGV. `Ring.take` checks what a batch promises (see `tests.virtqueue.ring.decode`): a value that was fetched
twice and changed in between breaks it.
"""

from __future__ import annotations

import os
import random
import signal
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.memory.guarded import GuardedMemory
from tests.virtqueue.ring import GUEST_BASE, INDIRECT, NEXT, WRITE, Entry, Ring, encode
from xenvirtio.errors import GuestError

GUEST_BYTES = 8192

sizes = st.sampled_from([1, 2, 4, 8, 64])

plausible_entries: st.SearchStrategy[Entry] = st.tuples(
    st.one_of(st.integers(GUEST_BASE, GUEST_BASE + GUEST_BYTES), st.integers(0, 2**64 - 1)),
    st.one_of(st.integers(0, 40).map(lambda n: 16 * n), st.integers(0, 200), st.integers(0, 2**32 - 1)),
    st.one_of(st.sampled_from([0, NEXT, WRITE, NEXT | WRITE, INDIRECT, INDIRECT | WRITE]), st.integers(0, 2**16 - 1)),
    st.one_of(st.integers(0, 8), st.integers(0, 2**16 - 1)),
)


def drain(ring: Ring) -> int:
    """Serve until the ring is empty or broken; return the number of chains. Bounded: the avail index stands still."""
    served = 0
    while ring.queue.has_available():
        try:
            count = len(ring.take())
        except GuestError:
            break
        assert count, "chains are available: a batch without one would be served for ever"
        for chain in range(count):
            ring.batch.written[chain] = min(ring.batch.writable_bytes[chain], 0xFFFF_FFFF)
        ring.queue.complete(ring.batch)
        ring.queue.publish()
        ring.queue.rearm_kicks()
        served += count
        assert served <= ring.size
    return served


@given(sizes, st.booleans(), st.booleans(), st.booleans(), st.integers(0, 2**32))
def test_random_bytes(size: int, at_end: bool, event_index: bool, indirect: bool, seed: int) -> None:
    source = random.Random(seed)
    ring = Ring(size, at_end=at_end, event_index=event_index, indirect=indirect, guest_bytes=GUEST_BYTES)
    for area in (ring.desc, ring.avail, ring.used, ring.guest):
        area.write(0, source.randbytes(area.length_bytes))
    if source.random() < 0.5:
        ring.queue.resume()
    if source.random() < 0.9:
        ring.set_avail_index(ring.queue.last_avail + source.randrange(size + 1))
    drain(ring)


@given(
    sizes,
    st.booleans(),
    st.lists(plausible_entries, min_size=1, max_size=64),
    st.lists(plausible_entries, min_size=1, max_size=64),
    st.lists(st.integers(0, 8), min_size=1, max_size=64),
    st.sampled_from([2, 40, 64, 2304]),
)
@example(1, True, [(GUEST_BASE, 16, INDIRECT, 0)], [(GUEST_BASE, 16, INDIRECT, 0)], [0], 2304)
@example(2, True, [(0, 1, NEXT, 1), (GUEST_BASE + GUEST_BYTES - 16, 16, INDIRECT, 0)], [(0, 0, NEXT, 0)], [0, 0], 2)
def test_plausible_descriptors(
    size: int, at_end: bool, entries: list[Entry], tables: list[Entry], heads: list[int], segment_capacity: int
) -> None:
    ring = Ring(size, at_end=at_end, guest_bytes=GUEST_BYTES, segment_capacity=segment_capacity)
    ring.desc.write(0, encode((entries * size)[:size]))
    ring.guest.write(0, encode((tables * (GUEST_BYTES // 16))[: GUEST_BYTES // 16]))
    ring.offer_heads(*heads[:size])
    before = [area.contents() for area in (ring.desc, ring.avail, ring.guest)]
    drain(ring)
    assert [area.contents() for area in (ring.desc, ring.avail, ring.guest)] == before, "the device wrote there"


@pytest.mark.parametrize("size", [1024, 32768])
def test_the_most_work_one_batch_can_be_made_to_do(size: int) -> None:
    """Every chain is as long as the queue and of zero-length buffers, which take no room: the chains are bounded."""
    ring = Ring(size, chain_capacity=4, segment_capacity=64, guest_bytes=GUEST_BYTES)
    ring.desc.write(0, encode([(0, 0, NEXT, index + 1) for index in range(size - 1)] + [(0, 0, 0, 0)]))
    ring.set_avail_index(size)
    assert len(ring.take()) <= 4


def scribble(ring: Ring, seed: int) -> None:
    """Rewrite shared memory for ever, mostly with values that make sense for a moment."""
    source = random.Random(seed)
    while True:
        ring.set_avail_index(ring.used_index + source.randrange(ring.size + 1))
        area: GuardedMemory = source.choice([ring.desc, ring.desc, ring.avail, ring.used, ring.guest])
        offset = source.randrange(0, max(area.length_bytes - 16, 1))
        value = source.choice(
            [
                source.randbytes(2),
                source.randrange(8).to_bytes(2, "little"),
                (16 * source.randrange(64)).to_bytes(4, "little"),
                (GUEST_BASE + 16 * source.randrange(GUEST_BYTES // 16)).to_bytes(8, "little"),
            ]
        )
        area.write(min(offset // 2 * 2, area.length_bytes - len(value)), value)


@pytest.mark.parametrize("event_index", [False, True])
@pytest.mark.parametrize("size", [4, 64])
def test_memory_that_changes_while_it_is_read(size: int, event_index: bool) -> None:
    """Another process (the guest) scribbles over everything that is shared while this one serves."""
    ring = Ring(size, event_index=event_index, guest_bytes=GUEST_BYTES, chain_capacity=2)
    child = os.fork()
    if child == 0:  # pragma: no cover
        try:
            scribble(ring, seed=size)
        finally:
            os._exit(1)
    try:
        start = time.monotonic()
        served = broken = 0
        while time.monotonic() < start + (0.4 if served and broken else 30):
            try:
                served += len(ring.take())
                ring.queue.complete(ring.batch)
                ring.queue.publish()
                ring.queue.rearm_kicks()
            except GuestError:
                broken += 1
                ring.queue = ring.new_queue()
                ring.queue.resume()
        assert (served > 0, broken > 0) == (True, True)
        assert os.waitpid(child, os.WNOHANG) == (0, 0), "the scribbler died, so nothing was tested"
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
