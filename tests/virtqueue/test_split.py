"""The device side of the split ring, against a driver side that keeps the rules and against one that does not."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.memory.guarded import PROT_READ, PROT_WRITE
from tests.virtqueue.ring import GUEST_BASE, INDIRECT, NEXT, WRITE, Entry, Ring
from xenvirtio.errors import GuestError, UsageError
from xenvirtio.memory.guest_memory import GuestMemory
from xenvirtio.memory.transfer import TransferList
from xenvirtio.virtqueue.layout import INDIRECT_MAX
from xenvirtio.virtqueue.split import SplitQueue

A, B, C = GUEST_BASE, GUEST_BASE + 0x100, GUEST_BASE + 0x200


def table_of(lengths: list[int], flags: int = 0) -> list[Entry]:
    """Buffers of the given lengths, chained in order."""
    last = len(lengths) - 1
    return [
        (A + 16 * i, length, flags | (NEXT if i < last else 0), i + 1 if i < last else 0)
        for i, length in enumerate(lengths)
    ]


# --- construction


@pytest.mark.parametrize("size", [0, 3, 6, 255, 65536])
def test_sizes_that_a_split_queue_cannot_have(size: int) -> None:
    with pytest.raises(UsageError, match="split queue of"):
        SplitQueue(size, 0, 0, 0, GuestMemory())


@pytest.mark.parametrize("areas", [(8, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 2), (0, 0, 1)])
def test_misaligned_areas_are_the_drivers_fault(areas: tuple[int, int, int]) -> None:
    """On arm64 the first acquire load from one would be a SIGBUS."""
    with pytest.raises(GuestError, match="aligned"):
        SplitQueue(4, *areas, GuestMemory())


# --- taking chains


def test_an_empty_ring_gives_an_empty_batch() -> None:
    ring = Ring(4)
    assert not ring.queue.has_available()
    assert ring.take() == []


def test_chains_come_in_the_order_offered_with_readable_buffers_first() -> None:
    ring = Ring(8)
    first = ring.driver.offer([(A, 1), (B, 2)], [(C, 3)])
    second = ring.driver.offer([], [(A, 4)])
    third = ring.driver.offer([(B, 5)], [])
    assert ring.queue.has_available()
    chains = ring.take()
    assert [chain.head for chain in chains] == [first, second, third]
    assert [(chain.readable, chain.writable) for chain in chains] == [
        ([(A, 1), (B, 2)], [(C, 3)]),
        ([], [(A, 4)]),
        ([(B, 5)], []),
    ]
    assert not ring.queue.has_available()
    assert ring.take() == []


def test_addresses_and_lengths_are_passed_on_whole() -> None:
    """What they point to is the device's business: nothing is touched here."""
    ring = Ring(4)
    ring.describe(0, 2**64 - 1, 0xFFFF_FFFF, NEXT, 1)
    ring.describe(1, 1 << 63, 0xFFFF_FFFF, NEXT | WRITE, 2)
    ring.describe(2, 0, 0xFFFF_FFFF, WRITE)
    ring.offer_heads(0)
    (chain,) = ring.take()
    assert chain.readable == [(2**64 - 1, 0xFFFF_FFFF)]
    assert chain.writable == [(1 << 63, 0xFFFF_FFFF), (0, 0xFFFF_FFFF)]
    assert ring.batch.writable_bytes[0] == 2 * 0xFFFF_FFFF


@pytest.mark.parametrize("at_end", [False, True])
@pytest.mark.parametrize("size", [1, 2, 16, 256])
def test_a_chain_of_exactly_the_queue_size(size: int, at_end: bool) -> None:
    ring = Ring(size, at_end=at_end)
    ring.driver.offer([(A + i, 1) for i in range(size)], [])
    (chain,) = ring.take()
    assert chain.readable == [(A + i, 1) for i in range(size)]


def test_unknown_flags_are_ignored() -> None:
    ring = Ring(4)
    ring.describe(0, A, 1, 0xFFF8)
    ring.offer_heads(0)
    (chain,) = ring.take()
    assert chain.readable == [(A, 1)]


def test_next_counts_only_with_its_flag() -> None:
    ring = Ring(4)
    ring.describe(0, A, 1, 0, 0xFFFF)
    ring.offer_heads(0)
    assert len(ring.take()) == 1


def test_zero_length_descriptors_vanish() -> None:
    ring = Ring(8)
    ring.describe(0, A, 0, NEXT, 1)
    ring.describe(1, A, 5, NEXT, 2)
    ring.describe(2, B, 0, NEXT | WRITE, 3)
    ring.describe(3, C, 7, NEXT | WRITE, 4)
    ring.describe(4, C, 0, WRITE)
    ring.describe(5, 0xDEAD, 0, 0)
    ring.offer_heads(0, 5)
    first, second = ring.take()
    assert (first.readable, first.writable) == ([(A, 5)], [(C, 7)])
    assert (second.head, second.readable, second.writable) == (5, [], [])


def test_a_chain_of_nothing_but_zero_lengths_is_completed_like_any_other() -> None:
    ring = Ring(4)
    for index in range(4):
        ring.describe(index, 0, 0, NEXT if index < 3 else 0, index + 1)
    ring.offer_heads(0)
    assert ring.serve()
    assert ring.used_entry(0) == (0, 0)


# --- what a driver must not do


@pytest.mark.parametrize("head", [4, 5, 0x7FFF, 0xFFFF])
def test_a_head_outside_the_table(head: int) -> None:
    ring = Ring(4)
    ring.offer_heads(head)
    with pytest.raises(GuestError, match="outside the table") as caught:
        ring.take()
    assert (caught.value.queue_index, caught.value.descriptor_index) == (3, head)


@pytest.mark.parametrize("following", [4, 0xFFFF])
def test_a_next_outside_the_table(following: int) -> None:
    ring = Ring(4)
    ring.describe(0, A, 1, NEXT, following)
    ring.offer_heads(0)
    with pytest.raises(GuestError, match="outside the table"):
        ring.take()


@pytest.mark.parametrize("loop", [[0], [1, 0], [1, 2, 3, 0], [1, 2, 3, 1]])
@pytest.mark.parametrize("length", [0, 1])
def test_a_loop(loop: list[int], length: int) -> None:
    ring = Ring(4)
    for index, following in enumerate(loop):
        ring.describe(index, A, length, NEXT, following)
    ring.offer_heads(0)
    with pytest.raises(GuestError, match="longer than the queue"):
        ring.take()


@pytest.mark.parametrize("start", [0, 65534])
@pytest.mark.parametrize("jump", [5, 6, 0x7FFF, 0x8000, 0xFFFF])
def test_an_avail_index_further_ahead_than_the_queue_is_long(start: int, jump: int) -> None:
    ring = Ring(4)
    ring.start_at(start)
    ring.set_avail_index(start + jump)
    assert ring.queue.has_available()
    with pytest.raises(GuestError, match=f"avail index is {jump} ahead of a queue of 4"):
        ring.take()


def test_an_avail_index_as_far_ahead_as_the_queue_is_long_is_right() -> None:
    ring = Ring(4)
    ring.offer_heads(0, 1, 2, 3)
    assert len(ring.take()) == 4


def test_a_readable_buffer_after_a_writable_one() -> None:
    ring = Ring(4)
    ring.describe(0, A, 1, NEXT | WRITE, 1)
    ring.describe(1, B, 1)
    ring.offer_heads(0)
    with pytest.raises(GuestError, match="readable buffer after a writable one") as caught:
        ring.take()
    assert caught.value.descriptor_index == 1


def test_the_same_chain_offered_twice_is_served_twice() -> None:
    """Foolish, but it harms nobody else; only what would reach outside the ring is an error."""
    ring = Ring(4)
    ring.describe(0, A, 1)
    ring.offer_heads(0, 0)
    assert [chain.head for chain in ring.take()] == [0, 0]


# --- indirect tables


def test_an_indirect_table() -> None:
    ring = Ring(2)
    address, length = ring.write_table(0, table_of([1, 2]))
    ring.describe(1, address, length, INDIRECT)
    ring.offer_heads(1)
    (chain,) = ring.take()
    assert (chain.head, chain.readable, chain.writable) == (1, [(A, 1), (A + 16, 2)], [])


def test_ring_descriptors_before_an_indirect_table_come_first() -> None:
    ring = Ring(8)
    ring.describe(0, 0x10, 1, NEXT, 1)
    ring.describe(1, 0x20, 2, NEXT, 2)
    address, length = ring.write_table(0, [(0x30, 3, NEXT, 1), (0x40, 4, NEXT | WRITE, 2), (0x50, 5, WRITE, 0)])
    ring.describe(2, address, length, INDIRECT)
    ring.offer_heads(0)
    (chain,) = ring.take()
    assert chain.readable == [(0x10, 1), (0x20, 2), (0x30, 3)]
    assert chain.writable == [(0x40, 4), (0x50, 5)]


def test_a_writable_prefix_goes_on_in_a_writable_table() -> None:
    ring = Ring(8)
    ring.describe(0, 0x10, 1, NEXT | WRITE, 1)
    address, length = ring.write_table(0, [(0x20, 2, WRITE, 0)])
    ring.describe(1, address, length, INDIRECT)
    ring.offer_heads(0)
    (chain,) = ring.take()
    assert (chain.readable, chain.writable) == ([], [(0x10, 1), (0x20, 2)])


def test_a_readable_table_after_a_writable_prefix() -> None:
    ring = Ring(8)
    ring.describe(0, 0x10, 1, NEXT | WRITE, 1)
    address, length = ring.write_table(0, [(0x20, 2, 0, 0)])
    ring.describe(1, address, length, INDIRECT)
    ring.offer_heads(0)
    with pytest.raises(GuestError, match="readable buffer after"):
        ring.take()


def test_a_table_in_any_order_and_with_unused_entries() -> None:
    ring = Ring(2)
    address, length = ring.write_table(
        0, [(0x10, 1, NEXT, 3), (0xBAD, 9, INDIRECT, 9), (0x30, 3, WRITE, 0), (0x20, 2, NEXT, 2)]
    )
    ring.describe(0, address, length, INDIRECT)
    ring.offer_heads(0)
    (chain,) = ring.take()
    assert (chain.readable, chain.writable) == ([(0x10, 1), (0x20, 2)], [(0x30, 3)])


def test_direct_and_indirect_chains_in_one_batch_keep_to_themselves() -> None:
    ring = Ring(8)
    for number in range(3):
        address, length = ring.write_table(
            4096 * number, [(0x100 * number, 1, NEXT, 1), (0x100 * number + 1, 2, WRITE, 0)]
        )
        ring.describe(2 * number, address, length, INDIRECT)
        ring.describe(2 * number + 1, 0x1000 * number, 3)
    ring.offer_heads(0, 1, 2, 3, 4, 5)
    chains = ring.take()
    assert [chain.readable for chain in chains] == [
        [(0, 1)], [(0, 3)], [(0x100, 1)], [(0x1000, 3)], [(0x200, 1)], [(0x2000, 3)],
    ]  # fmt: skip
    assert [chain.writable for chain in chains[::2]] == [[(1, 2)], [(0x101, 2)], [(0x201, 2)]]


def test_indirect_without_the_feature() -> None:
    ring = Ring(4, indirect=False)
    address, length = ring.write_table(0, table_of([1]))
    ring.describe(0, address, length, INDIRECT)
    ring.offer_heads(0)
    with pytest.raises(GuestError, match="without the feature"):
        ring.take()


@pytest.mark.parametrize("length", [0, 1, 15, 17, 31, 16 * INDIRECT_MAX + 16, 0xFFFF_FFF0, 0xFFFF_FFFF])
def test_a_table_of_impossible_length(length: int) -> None:
    ring = Ring(4)
    ring.describe(0, GUEST_BASE, length, INDIRECT)
    ring.offer_heads(0)
    with pytest.raises(GuestError, match="malformed indirect table"):
        ring.take()


def test_the_longest_table() -> None:
    ring = Ring(4)
    address, length = ring.write_table(0, table_of([1] * INDIRECT_MAX))
    ring.describe(0, address, length, INDIRECT)
    ring.offer_heads(0)
    (chain,) = ring.take()
    assert len(chain.readable) == INDIRECT_MAX


def test_next_beside_indirect() -> None:
    ring = Ring(4)
    address, length = ring.write_table(0, table_of([1]))
    ring.describe(0, address, length, INDIRECT | NEXT, 1)
    ring.describe(1, A, 1)
    ring.offer_heads(0)
    with pytest.raises(GuestError, match="malformed indirect table"):
        ring.take()


@pytest.mark.parametrize("flags", [INDIRECT, INDIRECT | NEXT, INDIRECT | WRITE])
def test_a_table_inside_a_table(flags: int) -> None:
    ring = Ring(4)
    address, length = ring.write_table(0, [(GUEST_BASE + 64, 16, flags, 0), (A, 1, 0, 0)])
    ring.describe(0, address, length, INDIRECT)
    ring.offer_heads(0)
    with pytest.raises(GuestError, match="inside an indirect table"):
        ring.take()


@pytest.mark.parametrize("following", [2, 3, 0xFFFF])
def test_a_next_outside_the_indirect_table(following: int) -> None:
    """Even where the ring's own table has such an entry."""
    ring = Ring(8)
    address, length = ring.write_table(0, [(A, 1, NEXT, following), (B, 1, 0, 0)])
    ring.describe(0, address, length, INDIRECT)
    ring.offer_heads(0)
    with pytest.raises(GuestError, match="outside the indirect table"):
        ring.take()


@pytest.mark.parametrize("length", [0, 1])
def test_a_loop_in_an_indirect_table(length: int) -> None:
    ring = Ring(8)
    address, size = ring.write_table(0, [(A, length, NEXT, 1), (B, length, NEXT, 0)])
    ring.describe(0, address, size, INDIRECT)
    ring.offer_heads(0)
    with pytest.raises(GuestError, match="longer than its indirect table"):
        ring.take()


@pytest.mark.parametrize("address", [0, GUEST_BASE - 16, GUEST_BASE + 64 * 1024 - 16, 2**64 - 16, 1 << 63])
def test_a_table_where_the_guest_gave_no_memory(address: int) -> None:
    ring = Ring(4)
    ring.describe(0, address, 32, INDIRECT)
    ring.offer_heads(0)
    with pytest.raises(GuestError, match="memory that the guest did not give"):
        ring.take()


def test_one_transfer_fetches_all_tables_of_a_batch() -> None:
    class Counting(GuestMemory):
        def __init__(self, real: GuestMemory) -> None:
            self.real = real
            self.lists: list[int] = []

        def transfer(self, copies: TransferList) -> int:
            self.lists.append(copies.count)
            return self.real.transfer(copies)

    ring = Ring(8)
    memory = Counting(ring.memory)
    queue = SplitQueue(8, ring.desc.address, ring.avail.address, ring.used.address, memory, indirect=True)
    for index in range(5):
        address, length = ring.write_table(1024 * index, table_of([index + 1] * 40))
        ring.describe(index, address, length, INDIRECT)
    ring.describe(5, A, 1)
    ring.offer_heads(0, 1, 5, 2, 3, 4)
    assert queue.take(ring.batch) == 6
    assert memory.lists == [5]
    assert queue.take(ring.batch) == 0
    assert memory.lists == [5], "nothing to fetch, nothing asked"


def test_a_table_changed_after_it_was_fetched_changes_nothing() -> None:
    class Treacherous(GuestMemory):
        """Overwrites the table in guest memory right after the copy."""

        def transfer(self, copies: TransferList) -> int:
            failures = ring.memory.transfer(copies)
            ring.guest.write(0, b"\xff" * 64)
            return failures

    ring = Ring(8)
    queue = SplitQueue(8, ring.desc.address, ring.avail.address, ring.used.address, Treacherous(), indirect=True)
    address, length = ring.write_table(0, table_of([1, 2]))
    ring.describe(0, address, length, INDIRECT)
    ring.offer_heads(0)
    assert queue.take(ring.batch) == 1
    assert list(ring.batch.length[:2]) == [1, 2]


# --- the limits of a batch


def test_more_chains_than_a_batch_holds_come_in_the_next() -> None:
    ring = Ring(64, chain_capacity=5)
    heads = [ring.driver.offer([(A, 1)], []) for _ in range(64)]
    sizes, got = [], []
    while chains := ring.take():
        sizes.append(len(chains))
        got += [chain.head for chain in chains]
    assert sizes == [5] * 12 + [4]
    assert got == heads


@pytest.mark.parametrize("segment_capacity", [16, 17, 31, 40, 64])
def test_more_segments_than_a_batch_holds_come_in_the_next(segment_capacity: int) -> None:
    ring = Ring(16, segment_capacity=segment_capacity)
    for index in range(15):
        ring.describe(index, A + index, 1, NEXT, index + 1)
    ring.describe(15, A + 15, 1)
    heads = [14, 0, 13, 12, 0, 9, 8, 14, 15, 1, 15, 0, 0, 3, 7, 15]  # chains of 2, 16, 3, ... buffers
    ring.offer_heads(*heads)
    got = []
    while chains := ring.take():
        got += [chain.head for chain in chains]
        assert all(len(chain.readable) == 16 - chain.head for chain in chains)
    assert got == heads


def offer_prefix_and_table(ring: Ring, number: int, prefix: int, entries: int) -> int:
    """A chain of `prefix` ring descriptors and a table; returns its head."""
    first = number * (prefix + 1)
    for index in range(first, first + prefix):
        ring.describe(index, 0x1000 * number + index - first, 1, NEXT, index + 1)
    place = 16 * entries * number
    address, length = ring.write_table(
        place,
        [
            (0x1000 * number + prefix + i, 1, NEXT if i < entries - 1 else 0, i + 1 if i < entries - 1 else 0)
            for i in range(entries)
        ],
    )
    ring.describe(first + prefix, address, length, INDIRECT)
    ring.offer_heads(first)
    return first


@pytest.mark.parametrize(("prefix", "entries"), [(0, 13), (1, 13), (7, 1), (7, 8), (15, 16), (3, 28)])
def test_well_made_chains_never_overflow_a_batch(prefix: int, entries: int) -> None:
    """A prefix needs its room twice, because the table's buffers must follow it without a gap."""
    number = 64 // (prefix + 1)
    ring = Ring(64, segment_capacity=2 * 64)
    heads = [offer_prefix_and_table(ring, n, prefix, entries) for n in range(number)]
    got: list[int] = []
    while chains := ring.take():
        for chain in chains:
            which = len(got)
            assert chain.readable == [(0x1000 * which + i, 1) for i in range(prefix + entries)]
            got.append(chain.head)
    assert got == heads


def test_tables_fill_a_batch_before_the_next_is_begun() -> None:
    """The room kept for a chain not seen yet is that of a ring chain, not that of the longest table."""
    ring = Ring(16, segment_capacity=16 + INDIRECT_MAX)
    for number in range(16):
        offer_prefix_and_table(ring, number, 0, 100)
    assert len(ring.take()) == 10
    assert len(ring.take()) == 6


def test_a_chain_put_back_for_want_of_room_is_read_anew() -> None:
    ring = Ring(16, segment_capacity=40)
    offer_prefix_and_table(ring, 0, 0, 20)
    offer_prefix_and_table(ring, 1, 0, 21)
    assert len(ring.take()) == 1
    address, length = ring.write_table(8192, table_of([9, 9]))
    ring.describe(1, address, length, INDIRECT)
    (chain,) = ring.take()
    assert chain.readable == [(A, 9), (A + 16, 9)]


def test_a_chain_too_big_for_any_batch_is_an_error() -> None:
    ring = Ring(16, segment_capacity=8)
    ring.driver.offer([(A, 1)] * 9, [])
    with pytest.raises(GuestError, match="too many buffers"):
        ring.take()
    ring = Ring(16, segment_capacity=8)
    offer_prefix_and_table(ring, 0, 0, 9)
    with pytest.raises(GuestError, match="too many buffers"):
        ring.take()


def test_bad_chains_behind_good_ones_spoil_the_batch() -> None:
    ring = Ring(4)
    ring.describe(0, A, 1)
    ring.offer_heads(0, 99)
    with pytest.raises(GuestError):
        ring.take()
    assert ring.used_index == 0, "nothing is shown to the driver"


# --- completing


def test_used_entries_follow_the_order_taken_and_carry_the_bytes_written() -> None:
    ring = Ring(4)
    heads = [ring.driver.offer([], [(A, 100)]) for _ in range(3)]
    ring.take()
    for chain in range(3):
        ring.batch.written[chain] = 10 + chain
    ring.queue.complete(ring.batch)
    assert ring.used_index == 0, "not published yet"
    assert ring.queue.publish()
    assert ring.used_index == 3
    assert [ring.used_entry(position) for position in range(3)] == [(heads[n], 10 + n) for n in range(3)]


def test_publishing_nothing_new_is_silent() -> None:
    ring = Ring(4)
    assert not ring.queue.publish()
    ring.driver.offer([(A, 1)], [])
    assert ring.serve()
    assert not ring.queue.publish()


def test_several_batches_can_be_published_at_once() -> None:
    ring = Ring(8, chain_capacity=2)
    tokens = list(range(5))
    for token in tokens:
        ring.driver.offer([(A, 1)], [], token)
    while ring.queue.take(ring.batch):
        ring.queue.complete(ring.batch)
    assert ring.driver.collect() == []
    assert ring.queue.publish()
    assert [token for token, _ in ring.driver.collect()] == tokens


def test_the_device_writes_only_into_the_used_ring() -> None:
    ring = Ring(8)
    ring.driver.offer([(A, 1)], [(B, 8)])
    ring.driver.offer_indirect(ring.guest.address + 4096, GUEST_BASE + 4096, [(A, 1)], [(C, 8)])
    for area in (ring.desc, ring.avail, ring.guest):
        area.protect(PROT_READ)
    ring.queue.suppress_kicks()
    ring.serve(written=8)
    ring.queue.rearm_kicks()
    for area in (ring.desc, ring.avail, ring.guest):
        area.protect(PROT_READ | PROT_WRITE)
    assert len(ring.driver.collect()) == 2


# --- notifications


@pytest.mark.parametrize(("flags", "wanted"), [(0, True), (1, False), (0xFFFE, True), (0xFFFF, False)])
def test_without_event_index_bit_0_of_the_flags_decides(flags: int, wanted: bool) -> None:
    ring = Ring(4)
    ring.set_used_event(0x1234)  # means nothing
    ring.set_avail_flags(flags)
    ring.offer_heads(0)
    assert ring.serve() == wanted


@pytest.mark.parametrize("start", [0, 1, 0x7FFE, 65530, 65535])
@pytest.mark.parametrize("count", [1, 3, 8])
def test_with_event_index_a_batch_notifies_exactly_when_it_passes_used_event(start: int, count: int) -> None:
    for distance in range(-3, count + 3):
        ring = Ring(8, event_index=True)
        ring.start_at(start)
        ring.set_avail_flags(1)  # means nothing
        ring.set_used_event(start + distance)
        ring.offer_heads(*range(count))
        assert ring.serve() == (0 <= distance < count), distance
        assert ring.used_index == (start + count) & 0xFFFF


def test_suppressed_kicks_come_back_with_rearm() -> None:
    ring = Ring(4)
    ring.queue.suppress_kicks()
    assert ring.used_flags == 1
    assert not ring.queue.rearm_kicks()
    assert ring.used_flags == 0


@pytest.mark.parametrize("start", [0, 65535])
def test_rearming_with_event_index_names_the_next_chain(start: int) -> None:
    ring = Ring(4, event_index=True)
    ring.start_at(start)
    ring.queue.suppress_kicks()
    assert ring.used_flags == 0
    ring.offer_heads(0, 1)
    ring.serve()
    assert not ring.queue.rearm_kicks()
    assert ring.avail_event == (start + 2) & 0xFFFF


def test_rearming_clears_a_flag_left_by_somebody_else() -> None:
    ring = Ring(4, event_index=True)
    ring.used.write(0, b"\1\0")
    ring.queue.rearm_kicks()
    assert ring.used_flags == 0


@pytest.mark.parametrize("event_index", [False, True])
def test_a_chain_offered_before_rearming_is_reported_by_it(event_index: bool) -> None:
    """The race of 2.7.13.4.1: the driver saw no wish for a kick, so the device has to look again itself."""
    ring = Ring(4, event_index=event_index)
    ring.driver.offer([(A, 1)], [])
    ring.driver.needs_kick()
    ring.queue.suppress_kicks()
    ring.serve()
    ring.driver.offer([(A, 1)], [])
    assert not ring.driver.needs_kick()
    assert ring.queue.rearm_kicks()
    ring.serve()
    assert not ring.queue.rearm_kicks()
    ring.driver.offer([(A, 1)], [])
    assert ring.driver.needs_kick()


@given(st.lists(st.integers(1, 16), min_size=1, max_size=40), st.booleans(), st.integers(0, 65535))
def test_no_notification_is_lost(batches: list[int], event_index: bool, start: int) -> None:
    """Each side sleeps whenever it may; the work still ends."""
    ring = Ring(16, event_index=event_index)
    ring.start_at(start)
    used_seen = start
    ring.set_used_event(used_seen)
    ring.queue.rearm_kicks()
    for count in batches:
        before = ring.avail_index
        ring.offer_heads(*range(count))
        if event_index:
            kick = (ring.avail_index - ring.avail_event - 1) & 0xFFFF < (ring.avail_index - before) & 0xFFFF
        else:
            kick = not ring.used_flags & 1
        assert kick, "the device sleeps: it must be woken"
        ring.queue.suppress_kicks()
        notified = ring.serve()
        assert notified, "the driver sleeps: it must be woken"
        assert not ring.queue.rearm_kicks()
        used_seen = ring.used_index
        ring.set_used_event(used_seen)
    assert ring.used_index == ring.avail_index


# --- going on after a restart


@pytest.mark.parametrize("start", [0, 3, 65533])
def test_a_successor_takes_everything_that_was_not_published(start: int) -> None:
    ring = Ring(8)
    ring.start_at(start)
    for index in range(6):
        ring.describe(index, A + index, 1)
    ring.offer_heads(0, 1)
    ring.serve()
    ring.offer_heads(2, 3, 4, 5)
    ring.take()
    ring.queue.complete(ring.batch)  # and then the process is killed, before `publish`
    ring.queue = ring.new_queue()
    ring.queue.resume()
    assert ring.queue.last_avail == ring.queue.used_index == ring.queue.published == (start + 2) & 0xFFFF
    assert [chain.head for chain in ring.take()] == [2, 3, 4, 5]
    ring.queue.complete(ring.batch)
    assert ring.queue.publish()
    assert ring.used_index == (start + 6) & 0xFFFF


def test_the_driver_does_not_notice_a_successor() -> None:
    ring = Ring(8, event_index=True)
    done: list[object] = []
    for number in range(100):
        for part in range(3):
            ring.driver.offer([(A, 1)], [], (number, part))
        ring.take()  # lost with its process
        ring.queue = ring.new_queue()
        ring.queue.resume()
        ring.serve()
        done += [token for token, _ in ring.driver.collect()]
    assert done == [(number, part) for number in range(100) for part in range(3)]


def test_a_used_index_forged_before_a_restart_is_at_worst_an_error() -> None:
    ring = Ring(4)
    ring.driver.offer([(A, 1)], [])
    ring.set_used_index(77)
    ring.queue.resume()
    with pytest.raises(GuestError, match="ahead"):
        ring.take()


# --- properties


chain_shapes = st.tuples(st.integers(0, 4), st.integers(0, 4)).filter(any)


@given(
    st.lists(st.tuples(chain_shapes, st.booleans()), max_size=60),
    st.integers(1, 7),
    st.booleans(),
    st.integers(1, 8),
    st.randoms(use_true_random=False),
)
def test_each_head_comes_back_exactly_once_and_in_order(
    shapes: list[tuple[tuple[int, int], bool]],
    chain_capacity: int,
    event_index: bool,
    publish_every: int,
    choice: Random,
) -> None:
    """Whatever the chains look like and however offering, serving and collecting interleave."""
    ring = Ring(16, event_index=event_index, chain_capacity=chain_capacity, segment_capacity=24)
    offered: list[tuple[int, int]] = []
    came_back: list[object] = []
    taken: list[int] = []
    waiting = list(enumerate(shapes))
    batches = 0
    while waiting or len(came_back) < len(offered):
        while waiting and choice.random() < 0.8:
            number, ((readable, writable), indirect) = waiting[0]
            needed = 1 if indirect else readable + writable
            if ring.driver.free_descriptors < needed:
                break
            waiting.pop(0)
            sources = [(A + i, 1 + i) for i in range(readable)]
            targets = [(B + i, 1 + i) for i in range(writable)]
            if indirect:
                place = 8192 + 256 * (number % 64)
                head = ring.driver.offer_indirect(
                    ring.guest.address + place, GUEST_BASE + place, sources, targets, number
                )
            else:
                head = ring.driver.offer(sources, targets, number)
            offered.append((number, head))
        for position, chain in enumerate(ring.take()):
            assert (len(chain.readable), len(chain.writable)) == shapes[len(taken)][0]
            ring.batch.written[position] = 3 * len(taken)
            taken.append(chain.head)
        ring.queue.complete(ring.batch)
        batches += 1
        if batches % publish_every == 0 or choice.random() < 0.3:
            ring.queue.publish()
            for token, written in ring.driver.collect():
                assert written == 3 * len(came_back)
                came_back.append(token)
    assert came_back == [number for number, _ in offered] == list(range(len(shapes)))
    assert taken == [head for _, head in offered]
    assert ring.driver.in_flight == 0
    assert ring.driver.free_descriptors == 16


def test_a_full_turn_of_the_indices() -> None:
    """65536 chains and some more through a queue that both sides see wrap around."""
    ring = Ring(256, event_index=True, chain_capacity=256)
    expected = 0
    for _ in range(65536 // 256 + 2):
        for number in range(256):
            ring.driver.offer([(A, 1)], [], number)
        assert ring.driver.needs_kick()
        assert ring.serve()
        assert [token for token, _ in ring.driver.collect()] == list(range(256))
        assert not ring.driver.enable_interrupts()
        assert not ring.queue.rearm_kicks()
        expected = (expected + 256) & 0xFFFF
        assert ring.used_index == ring.queue.used_index == ring.queue.last_avail == expected
