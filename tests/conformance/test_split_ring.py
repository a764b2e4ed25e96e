"""VIRTIO 1.4, split virtqueues: what the specification demands of the device side (split-ring.tex).

The engine never touches buffers; that a device does not write to readable ones is proven again with each device.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.memory.guarded import PROT_NONE, PROT_READ, PROT_WRITE, GuardedMemory
from tests.virtqueue.ring import GUEST_BASE, INDIRECT, NEXT, WRITE, Entry, Ring
from xenvirtio.memory.buffer import HostBuffer
from xenvirtio.memory.regions import RegionMemory, RegionSource, RegionTable
from xenvirtio.memory.transfer import TransferList
from xenvirtio.virtqueue.split import SplitQueue

A, B, C = GUEST_BASE, GUEST_BASE + 0x100, GUEST_BASE + 0x200


def cut(start: int, total: int, borders: list[int]) -> list[tuple[int, int]]:
    """Describe `total` bytes from `start` as buffers that end at `borders`."""
    ends = sorted({border for border in borders if 0 < border < total} | {total})
    return [(start + begin, end - begin) for begin, end in zip([0, *ends], ends, strict=False)]


def bytes_of(buffers: list[tuple[int, int]]) -> list[int]:
    return [address + i for address, length in buffers for i in range(length)]


@pytest.mark.spec("split-ring.1.1")
@given(st.lists(st.integers(1, 63), max_size=6), st.lists(st.integers(1, 39), max_size=6), st.integers(0, 15))
def test_the_arrangement_of_buffers_does_not_matter(reads: list[int], writes: list[int], in_ring: int) -> None:
    """The same bytes come out whichever way the driver cut them up and wherever the indirect table begins."""
    buffers = [(*buffer, 0) for buffer in cut(A, 64, reads)] + [(*buffer, WRITE) for buffer in cut(B, 40, writes)]
    ring = Ring(16)
    direct, tabled = buffers[:in_ring], buffers[in_ring:]
    for index, (address, length, flags) in enumerate(direct):
        more = index < len(buffers) - 1
        ring.describe(index, address, length, flags | (NEXT if more else 0), index + 1 if more else 0)
    if tabled:
        table: list[Entry] = [(a, n, flags | NEXT, i + 1) for i, (a, n, flags) in enumerate(tabled)]
        table[-1] = (tabled[-1][0], tabled[-1][1], tabled[-1][2], 0)
        ring.describe(len(direct), *ring.write_table(4096, table), INDIRECT)
    ring.offer_heads(0)
    (chain,) = ring.take()
    assert bytes_of(chain.readable) == list(range(A, A + 64))
    assert bytes_of(chain.writable) == list(range(B, B + 40))


def a_guest_with_protected_buffers(protection: int) -> tuple[RegionMemory, GuardedMemory, HostBuffer]:
    """Guest memory whose first page has `protection` and whose second one is free to use."""
    locked, free = GuardedMemory(4096), HostBuffer(4096)
    locked.protect(protection)
    regions = [(GUEST_BASE, 4096, locked.address, True), (GUEST_BASE + 4096, 4096, free.address, True)]
    return RegionMemory(RegionSource(RegionTable(regions))), locked, free


def serve_one_of_each_kind(memory: RegionMemory, free: HostBuffer, buffer: int) -> None:
    """One direct and one indirect chain whose buffers lie at `buffer`, from offer to used entry."""
    ring = Ring(8)
    queue = SplitQueue(8, ring.desc.address, ring.avail.address, ring.used.address, memory, indirect=True)
    readable, writable = [(buffer, 512)], [(buffer + 512, 512)]
    ring.driver.offer(readable, writable)
    ring.driver.offer_indirect(free.address, GUEST_BASE + 4096, readable, writable)
    assert queue.take(ring.batch) == 2
    queue.complete(ring.batch)
    assert queue.publish()
    assert len(ring.driver.collect()) == 2


@pytest.mark.spec("split-ring.2.1")
def test_readable_buffers_are_not_written() -> None:
    memory, _, free = a_guest_with_protected_buffers(PROT_READ)
    serve_one_of_each_kind(memory, free, GUEST_BASE)


@pytest.mark.spec("split-ring.2.2")
def test_writable_buffers_are_not_read() -> None:
    memory, _, free = a_guest_with_protected_buffers(PROT_NONE)
    serve_one_of_each_kind(memory, free, GUEST_BASE)


@pytest.mark.spec("split-ring.2.3")
def test_descriptor_tables_are_not_written() -> None:
    ring = Ring(8)
    ring.driver.offer([(A, 1)], [(B, 8)])
    ring.driver.offer_indirect(ring.guest.address + 4096, GUEST_BASE + 4096, [(A, 1)], [(C, 8)])
    ring.desc.protect(PROT_READ)
    ring.guest.protect(PROT_READ)  # the indirect table
    ring.queue.suppress_kicks()
    assert ring.serve(written=8)
    ring.queue.rearm_kicks()
    ring.desc.protect(PROT_READ | PROT_WRITE)
    assert len(ring.driver.collect()) == 2


@pytest.mark.spec("split-ring.3.1")
def test_the_write_flag_beside_indirect_is_ignored() -> None:
    found = []
    for flags in (INDIRECT, INDIRECT | WRITE):
        ring = Ring(4)
        ring.describe(0, *ring.write_table(0, [(A, 1, NEXT, 1), (B, 2, WRITE, 0)]), flags)
        ring.offer_heads(0)
        (chain,) = ring.take()
        found.append((chain.readable, chain.writable))
    assert found[0] == found[1] == ([(A, 1)], [(B, 2)])


@pytest.mark.spec("split-ring.3.2")
@pytest.mark.parametrize("before", [0, 1, 2, 7])
def test_normal_descriptors_may_precede_an_indirect_one(before: int) -> None:
    ring = Ring(8)
    for index in range(before):
        ring.describe(index, A + index, 1, NEXT, index + 1)
    ring.describe(before, *ring.write_table(0, [(B, 1, NEXT, 1), (C, 1, WRITE, 0)]), INDIRECT)
    ring.offer_heads(0)
    (chain,) = ring.take()
    assert chain.readable == [(A + index, 1) for index in range(before)] + [(B, 1)]
    assert chain.writable == [(C, 1)]


@pytest.mark.spec("split-ring.4.1")
def test_used_event_means_nothing_without_event_index() -> None:
    for flags, notified in ((0, True), (1, False)):
        for used_event in (0, 1, 2, 0x7FFF, 0xFFFF):
            ring = Ring(4)
            ring.set_avail_flags(flags)
            ring.set_used_event(used_event)
            ring.offer_heads(0, 1)
            assert ring.serve() == notified


@pytest.mark.spec("split-ring.4.2")
def test_flag_1_without_event_index_stops_notifications() -> None:
    ring = Ring(4)
    ring.set_avail_flags(1)
    ring.offer_heads(0)
    assert not ring.serve()


@pytest.mark.spec("split-ring.4.3")
def test_flag_0_without_event_index_asks_for_notifications() -> None:
    ring = Ring(4)
    ring.set_avail_flags(1)
    ring.offer_heads(0)
    ring.serve()
    ring.set_avail_flags(0)
    ring.offer_heads(0)
    assert ring.serve()


@pytest.mark.spec("split-ring.4.4")
def test_the_lower_bit_of_flags_means_nothing_with_event_index() -> None:
    for used_event, notified in ((0, True), (1, False)):
        for flags in (0, 1):
            ring = Ring(4, event_index=True)
            ring.set_avail_flags(flags)
            ring.set_used_event(used_event)
            ring.offer_heads(0)
            assert ring.serve() == notified


@pytest.mark.spec("split-ring.4.5")
@pytest.mark.parametrize("start", [0, 5, 0x7FFF, 65532, 65535])
def test_the_entry_at_used_event_is_notified(start: int) -> None:
    for count in range(1, 9):
        for distance in range(count):
            ring = Ring(8, event_index=True)
            ring.start_at(start)
            ring.set_used_event(start + distance)
            ring.offer_heads(*range(count))
            assert ring.serve(), (count, distance)


@pytest.mark.spec("split-ring.4.6")
@pytest.mark.parametrize("start", [0, 5, 0x7FFF, 65532, 65535])
def test_entries_that_are_not_at_used_event_are_not_notified(start: int) -> None:
    for count in range(1, 9):
        for distance in (-0x8000, -count, -1, count, count + 1, 0x7FFF):
            ring = Ring(8, event_index=True)
            ring.start_at(start)
            ring.set_used_event(start + distance)
            ring.offer_heads(*range(count))
            assert not ring.serve(), (count, distance)


@pytest.mark.spec("split-ring.5.1")
def test_the_length_is_there_before_the_index_moves() -> None:
    ring = Ring(4)
    head = ring.driver.offer([], [(A, 100)])
    ring.take()
    ring.batch.written[0] = 77
    ring.queue.complete(ring.batch)
    assert (ring.used_entry(0), ring.used_index) == ((head, 77), 0)
    ring.queue.publish()
    assert (ring.used_entry(0), ring.used_index) == ((head, 77), 1)


@pytest.mark.spec("split-ring.5.2")
def test_the_data_is_there_before_the_index_moves() -> None:
    """What a device transfers is in the guest's memory when `transfer` returns; only `publish` moves the index."""
    ring = Ring(4)
    ring.driver.offer([], [(A, 3), (B, 100)])
    (chain,) = ring.take()
    ours = HostBuffer(16)
    ours.view[:8] = b"answered"
    copies = TransferList()
    copies.add(chain.writable[0][0], ours.address, 3, True)
    copies.add(chain.writable[1][0], ours.address + 3, 5, True)
    assert ring.memory.transfer(copies) == 0
    ring.batch.written[0] = 8
    ring.queue.complete(ring.batch)
    assert ring.used_index == 0
    assert ring.guest.read(0, 3) + ring.guest.read(0x100, 5) == b"answered"
    ring.queue.publish()
    assert ring.driver.collect() == [(None, 8)]


@pytest.mark.spec("split-ring.6.1")
def test_without_event_index_the_flags_are_0_or_1() -> None:
    ring = Ring(4)
    seen = {ring.used_flags}
    for _ in range(3):
        ring.driver.offer([(A, 1)], [])
        ring.queue.suppress_kicks()
        seen.add(ring.used_flags)
        ring.serve()
        seen.add(ring.used_flags)
        ring.queue.rearm_kicks()
        seen.add(ring.used_flags)
        ring.driver.collect()
    assert seen == {0, 1}


@pytest.mark.spec("split-ring.6.2")
@pytest.mark.parametrize("left_behind", [0, 1])
def test_with_event_index_the_flags_are_0(left_behind: int) -> None:
    ring = Ring(4, event_index=True)
    ring.used.write(0, left_behind.to_bytes(2, "little"))
    ring.queue.rearm_kicks()
    for _ in range(3):
        ring.driver.offer([(A, 1)], [])
        ring.queue.suppress_kicks()
        assert ring.used_flags == 0
        ring.serve()
        ring.queue.rearm_kicks()
        assert ring.used_flags == 0
        ring.driver.collect()


@pytest.mark.spec("split-ring.6.3")
@pytest.mark.parametrize("event_index", [False, True])
def test_a_notification_without_new_buffers_changes_nothing(event_index: bool) -> None:
    ring = Ring(4, event_index=event_index)
    ring.driver.offer([(A, 1)], [])
    ring.serve()
    ring.queue.rearm_kicks()
    before = ring.used.contents()
    for _ in range(3):
        ring.queue.suppress_kicks()
        assert not ring.serve()
        assert not ring.queue.rearm_kicks()
    assert ring.used.contents() == before
    ring.driver.offer([(A, 1)], [])
    ring.serve()
    assert len(ring.driver.collect()) == 2, "and it goes on as usual"
