"""One queue's thread: when it drains, when it stops, pauses and fails, and whom it tells."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from tests.virtio.fakes import FakeDevice, GuestQueue
from xenvirtio.errors import GuestError, XenvirtioError
from xenvirtio.memory.buffer import HostBuffer
from xenvirtio.memory.guest_memory import GuestMemory
from xenvirtio.memory.raw import load_u32, store_u16
from xenvirtio.virtio.queue_runner import CHAINS_PER_BATCH, QueueRunner
from xenvirtio.virtqueue.batch import ChainBatch
from xenvirtio.virtqueue.driver import DriverQueue
from xenvirtio.virtqueue.split import SplitQueue


class Device(FakeDevice):
    """Calls `during` while it serves a batch."""

    during: Callable[[], None] = staticmethod(lambda: None)

    def process(self, queue_index: int, batch: ChainBatch, memory: GuestMemory) -> None:
        super().process(queue_index, batch, memory)
        self.during()


class Bench:
    def __init__(self, *, size: int = 16, event_index: bool = False, irq_fd: bool = False) -> None:
        self.guest = GuestQueue(size)
        if event_index:
            areas = (self.guest.desc, self.guest.avail, self.guest.used)
            self.guest.ring = DriverQueue(size, *areas, event_index=True)
        self.device = Device()
        self.kick_fd = os.eventfd(0)
        self.irq_fd = os.eventfd(0, os.EFD_NONBLOCK) if irq_fd else -1
        self.status = HostBuffer(16)
        self.interrupts = 0
        self.failures: list[XenvirtioError] = []
        areas = (self.guest.desc, self.guest.avail, self.guest.used)
        queue = SplitQueue(size, *areas, GuestMemory(), queue_index=0, event_index=event_index)
        self.runner = QueueRunner(
            self.device, queue, GuestMemory(), self.kick_fd, self.status.address, self.irq_fd, self._interrupt,
            self.failures.append,
        )  # fmt: skip
        self.thread = threading.Thread(target=self.runner.serve, daemon=True)

    def _interrupt(self) -> None:
        self.interrupts += 1

    def start(self) -> None:
        self.thread.start()

    def kick(self) -> None:
        if self.guest.ring.needs_kick():
            os.eventfd_write(self.kick_fd, 1)

    def served(self) -> int:
        return sum(len(heads) for _, heads in self.device.processed)

    def until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 10
        while not condition():
            assert time.monotonic() < deadline, "it did not happen"
            time.sleep(0.001)

    def end(self) -> None:
        self.runner.stop()
        self.thread.join(10)
        assert not self.thread.is_alive()


@pytest.fixture
def make() -> Iterator[Callable[..., Bench]]:
    made: list[Bench] = []

    def make_one(**options: int) -> Bench:
        made.append(Bench(**options))  # type: ignore[arg-type]
        return made[-1]

    yield make_one
    for bench in made:
        if bench.thread.is_alive():
            bench.end()
        os.close(bench.kick_fd)
        if bench.irq_fd >= 0:
            os.close(bench.irq_fd)


def test_what_was_offered_before_it_listened_is_served(make: Callable[..., Bench]) -> None:
    bench = make()
    bench.guest.offer("early")
    bench.start()
    bench.until(lambda: bench.served() == 1)
    bench.end()
    assert bench.guest.ring.collect() == [("early", 0)]


def test_a_kick_is_served_with_one_interrupt_for_a_batch(make: Callable[..., Bench]) -> None:
    bench = make()
    bench.start()
    time.sleep(0.02)
    for number in range(8):
        bench.guest.offer(number)
    bench.kick()
    bench.until(lambda: bench.interrupts > 0)
    bench.end()
    assert bench.guest.ring.collect() == [(number, 0) for number in range(8)]
    assert (bench.runner.batches, bench.runner.requests, bench.runner.interrupts) == (1, 8, 1)
    assert load_u32(bench.status.address) == 1


def test_more_than_a_batch_is_served_without_another_kick(make: Callable[..., Bench]) -> None:
    bench = make(size=256)
    for number in range(CHAINS_PER_BATCH * 2 + 1):
        bench.guest.offer(number)
    bench.start()
    bench.until(lambda: bench.served() == CHAINS_PER_BATCH * 2 + 1)
    bench.end()
    assert bench.runner.batches == 3


def test_offers_during_service_need_no_kick(make: Callable[..., Bench]) -> None:
    bench = make()
    left = [3]

    def offer_more() -> None:
        if left[0]:
            left[0] -= 1
            bench.guest.offer()
            assert not bench.guest.ring.needs_kick()

    bench.device.during = offer_more
    bench.guest.offer()
    bench.start()
    bench.until(lambda: bench.served() == 4)
    bench.end()


@pytest.mark.parametrize("event_index", [False, True])
def test_no_kick_is_lost_under_constant_use(make: Callable[..., Bench], event_index: bool) -> None:
    bench = make(event_index=event_index)
    bench.start()
    returned = 0
    for number in range(2000):
        bench.guest.offer(number)
        bench.kick()
        returned += len(bench.guest.ring.collect())
        while bench.guest.ring.free_descriptors == 0:
            returned += len(bench.guest.ring.collect())
            time.sleep(0)
    bench.until(lambda: bench.served() == 2000)
    bench.end()
    assert returned + len(bench.guest.ring.collect()) == 2000


def test_the_event_index_says_when_to_interrupt(make: Callable[..., Bench]) -> None:
    bench = make(event_index=True)
    used_event = bench.guest.avail + 4 + 2 * bench.guest.size
    store_u16(used_event, 2)  # after the third used buffer
    bench.start()
    for number in range(3):
        bench.guest.offer(number)
        os.eventfd_write(bench.kick_fd, 1)
        bench.until(lambda wanted=number + 1: bench.runner.requests == wanted)  # type: ignore[misc]
    bench.end()
    assert bench.interrupts == 1


def test_a_driver_that_wants_no_interrupt_gets_none(make: Callable[..., Bench]) -> None:
    bench = make()
    bench.guest.ring.enable_interrupts(False)
    bench.guest.offer()
    bench.start()
    bench.until(lambda: bench.runner.requests == 1)
    bench.end()
    assert (bench.interrupts, load_u32(bench.status.address)) == (0, 0)


def test_an_irqfd_is_written_instead_of_calling(make: Callable[..., Bench]) -> None:
    bench = make(irq_fd=True)
    bench.guest.offer()
    bench.start()
    bench.until(lambda: bench.runner.interrupts == 1)
    bench.end()
    assert (os.eventfd_read(bench.irq_fd), bench.interrupts, load_u32(bench.status.address)) == (1, 0, 1)


def test_stop_ends_an_idle_queue_and_one_never_kicked(make: Callable[..., Bench]) -> None:
    bench = make()
    bench.start()
    bench.end()
    assert bench.device.processed == []


def test_stop_finishes_the_batch_under_way(make: Callable[..., Bench]) -> None:
    bench = make()
    busy, go_on = threading.Event(), threading.Event()

    def block() -> None:
        busy.set()
        go_on.wait(10)

    bench.device.during = block
    bench.guest.offer("under way")
    bench.start()
    assert busy.wait(10)
    bench.guest.offer("too late")
    bench.runner.stop()
    go_on.set()
    bench.thread.join(10)
    assert not bench.thread.is_alive()
    assert bench.guest.ring.collect() == [("under way", 0)]


def test_a_batch_that_the_device_gave_up_is_not_shown_to_the_driver(make: Callable[..., Bench]) -> None:
    bench = make()

    class Quick(Device):
        def process(self, queue_index: int, batch: ChainBatch, memory: GuestMemory) -> None:
            super().process(queue_index, batch, memory)
            bench.runner.abandon()
            batch.unfinished = batch.abandoned

    bench.device.__class__ = Quick
    bench.guest.offer("hours of work")
    bench.start()
    bench.until(lambda: bench.served() == 1)
    bench.end()
    assert bench.guest.ring.collect() == []
    assert (bench.interrupts, bench.failures) == (0, [])


def test_pause_returns_between_two_batches_and_holds_the_next(make: Callable[..., Bench]) -> None:
    bench = make()
    inside = [0]

    def look() -> None:
        inside[0] = 1
        time.sleep(0.01)
        inside[0] = 0
        bench.guest.offer()  # never idle

    bench.device.during = look
    bench.guest.offer()
    bench.start()
    bench.until(lambda: bench.served() > 0)
    for _ in range(5):
        bench.runner.pause()
        assert inside == [0]
        before = bench.served()
        time.sleep(0.02)
        assert (bench.served(), inside) == (before, [0])
        bench.runner.unpause()
        bench.until(lambda seen=before: bench.served() > seen)  # type: ignore[misc]
        bench.guest.ring.collect()
    bench.end()


def test_a_drivers_mistake_is_reported_once_and_ends_the_queue(make: Callable[..., Bench]) -> None:
    bench = make()
    bench.start()
    store_u16(bench.guest.avail + 2, 99)  # more than the ring holds
    os.eventfd_write(bench.kick_fd, 1)
    bench.thread.join(10)
    assert not bench.thread.is_alive()
    os.eventfd_write(bench.kick_fd, 1)
    (error,) = bench.failures
    assert isinstance(error, GuestError)
    assert error.queue_index == 0
    assert bench.device.processed == []


def test_a_bug_in_the_device_asks_for_a_reset_too(make: Callable[..., Bench], caplog: pytest.LogCaptureFixture) -> None:
    """Otherwise the driver would wait for ever."""
    bench = make()

    def fail() -> None:
        raise ZeroDivisionError("a bug")

    bench.device.during = fail
    bench.guest.offer()
    with caplog.at_level(logging.ERROR):
        bench.start()
        bench.thread.join(10)
    assert [str(error) for error in bench.failures] == ["queue 0: ZeroDivisionError: a bug"]
    assert "a queue has failed" in caplog.text
    assert bench.guest.ring.collect() == []
