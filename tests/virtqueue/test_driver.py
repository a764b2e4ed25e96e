from __future__ import annotations

import pytest

from tests.virtqueue.ring import GUEST_BASE, Ring
from xenvirtio.errors import PeerProtocolError, UsageError
from xenvirtio.virtqueue.driver import DriverQueue, QueueFullError

A, B, C = GUEST_BASE, GUEST_BASE + 0x100, GUEST_BASE + 0x200


def test_what_is_offered_is_what_the_device_takes() -> None:
    ring = Ring(8)
    head = ring.driver.offer([(A, 1), (B, 2)], [(C, 3)])
    (chain,) = ring.take()
    assert (chain.head, chain.readable, chain.writable) == (head, [(A, 1), (B, 2)], [(C, 3)])


def test_tokens_come_back_with_the_used_length() -> None:
    ring = Ring(8)
    token = object()
    ring.driver.offer([], [(A, 100)], token)
    assert ring.driver.collect() == []
    ring.serve(written=42)
    assert ring.driver.collect() == [(token, 42)]
    assert ring.driver.collect() == []


def test_descriptors_are_accounted_for() -> None:
    ring = Ring(4)
    ring.driver.offer([(A, 1), (B, 1)], [(C, 1)])
    assert (ring.driver.free_descriptors, ring.driver.in_flight) == (1, 1)
    with pytest.raises(QueueFullError, match="2 descriptors wanted, 1 free"):
        ring.driver.offer([(A, 1)], [(B, 1)])
    ring.serve()
    ring.driver.collect()
    assert (ring.driver.free_descriptors, ring.driver.in_flight) == (4, 0)


def test_a_full_queue_refuses_without_showing_the_device_anything() -> None:
    ring = Ring(2)
    ring.driver.offer([(A, 1)], [(B, 1)])
    with pytest.raises(QueueFullError):
        ring.driver.offer([(C, 1)], [])
    assert ring.avail_index == 1


def test_an_indirect_chain_takes_one_descriptor_of_the_ring() -> None:
    ring = Ring(2)
    ring.driver.offer_indirect(ring.guest.address + 4096, GUEST_BASE + 4096, [(A, 1), (B, 2)], [(C, 3)], "token")
    assert ring.driver.free_descriptors == 1
    (chain,) = ring.take()
    assert (chain.readable, chain.writable) == ([(A, 1), (B, 2)], [(C, 3)])


def test_a_chain_needs_buffers() -> None:
    ring = Ring(2)
    with pytest.raises(UsageError, match="without buffers"):
        ring.driver.offer([], [])
    with pytest.raises(UsageError, match="without buffers"):
        ring.driver.offer_indirect(ring.guest.address, GUEST_BASE, [], [])
    assert (ring.avail_index, ring.driver.free_descriptors) == (0, 2)


@pytest.mark.parametrize("size", [0, -1, 3, 65536])
def test_sizes_that_a_split_queue_cannot_have(size: int) -> None:
    with pytest.raises(UsageError, match="split queue of"):
        DriverQueue(size, 0, 0, 0)


def test_misaligned_areas_are_refused_before_they_are_touched() -> None:
    for areas in ((8, 16, 16), (16, 1, 16), (16, 16, 2)):
        with pytest.raises(UsageError, match="aligned"):
            DriverQueue(4, *areas)


@pytest.mark.parametrize("returned", [1, 3, 4, 0xFFFF_FFFF])
def test_a_device_returning_what_it_does_not_hold_is_a_protocol_error(returned: int) -> None:
    ring = Ring(4)
    head = ring.driver.offer([(A, 1)], [])
    assert returned != head
    ring.used.write(4, returned.to_bytes(4, "little"))
    ring.set_used_index(1)
    with pytest.raises(PeerProtocolError, match="not in flight"):
        ring.driver.collect()


def test_a_device_returning_a_chain_twice_is_a_protocol_error() -> None:
    ring = Ring(4)
    head = ring.driver.offer([(A, 1)], [])
    ring.used.write(4, head.to_bytes(4, "little"))
    ring.used.write(12, head.to_bytes(4, "little"))
    ring.set_used_index(2)
    with pytest.raises(PeerProtocolError):
        ring.driver.collect()


def test_kicks_without_event_index_follow_the_device_flag() -> None:
    ring = Ring(8)
    assert not ring.driver.needs_kick(), "nothing was offered"
    ring.driver.offer([(A, 1)], [])
    assert ring.driver.needs_kick()
    assert not ring.driver.needs_kick(), "once per offer"
    ring.queue.suppress_kicks()
    ring.driver.offer([(A, 1)], [])
    assert not ring.driver.needs_kick()
    ring.queue.rearm_kicks()
    ring.driver.offer([(A, 1)], [])
    assert ring.driver.needs_kick()


def test_kicks_with_event_index_come_when_the_index_is_passed() -> None:
    ring = Ring(8, event_index=True)
    ring.used.write(0, b"\1\0")  # the flag means nothing now
    kicks = []
    for _ in range(3):
        ring.driver.offer([(A, 1)], [])
        kicks.append(ring.driver.needs_kick())
    assert kicks == [True, False, False]
    ring.serve()
    ring.queue.rearm_kicks()
    ring.driver.collect()
    for _ in range(3):
        ring.driver.offer([(A, 1)], [])
    assert ring.driver.needs_kick(), "one kick for three chains"


@pytest.mark.parametrize("event_index", [False, True])
def test_interrupts_can_be_turned_off_and_on(event_index: bool) -> None:
    ring = Ring(8, event_index=event_index)
    ring.driver.enable_interrupts(False)
    ring.driver.offer([(A, 1)], [])
    assert not ring.serve()
    assert ring.driver.enable_interrupts(), "a chain waits already"
    ring.driver.collect()
    assert not ring.driver.enable_interrupts()
    ring.driver.offer([(A, 1)], [])
    assert ring.serve()


def test_the_new_index_is_the_last_thing_written() -> None:
    """The device side sees either nothing of a chain or all of it."""
    ring = Ring(4)
    seen: list[int] = []
    write = DriverQueue._write_descriptor

    class Watched(DriverQueue):
        @staticmethod
        def _write_descriptor(entry: int, address: int, length: int, flags: int, following: int) -> None:
            seen.append(ring.avail_index)
            write(entry, address, length, flags, following)

    driver = Watched(4, ring.desc.address, ring.avail.address, ring.used.address)
    driver.offer([(A, 1), (B, 1)], [(C, 1)])
    assert seen == [0, 0, 0]
    assert ring.avail_index == 1
