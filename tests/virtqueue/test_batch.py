from __future__ import annotations

from tests.virtqueue.ring import GUEST_BASE, Ring
from xenvirtio.virtqueue.batch import ChainBatch


def test_a_new_batch_is_empty_and_has_the_room_asked_for() -> None:
    batch = ChainBatch(3, 7)
    assert (batch.count, batch.segments) == (0, 0)
    assert (len(batch.head), len(batch.written), len(batch.address), len(batch.length)) == (3, 3, 7, 7)


def test_a_batch_used_again_shows_nothing_of_its_past() -> None:
    ring = Ring(8)
    ring.driver.offer([(GUEST_BASE, 10)], [(GUEST_BASE + 16, 20)])
    ring.serve(written=20)
    ring.driver.offer([], [(GUEST_BASE, 5)])
    (chain,) = ring.take()  # `decode` checks the sums and that `written` starts at 0
    assert (chain.readable, chain.writable) == ([], [(GUEST_BASE, 5)])
    ring.batch.clear()
    assert (ring.batch.count, ring.batch.segments) == (0, 0)
