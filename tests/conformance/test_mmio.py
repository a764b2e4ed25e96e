"""What VIRTIO 1.4 demands of a device over MMIO (4.2.2.1), and of shared memory regions (2.10.2)."""

from __future__ import annotations

import pytest

from tests.virtio.fakes import FakeDevice, GuestQueue, Machine
from xenvirtio.errors import GuestError
from xenvirtio.virtio import features
from xenvirtio.virtio.transports.mmio_layout import CONFIG, CONFIG_CHANGE, USED_BUFFER, Register


@pytest.fixture
def machine() -> Machine:
    return Machine()


@pytest.fixture
def live(machine: Machine) -> Machine:
    machine.go_live(queues=2)
    return machine


@pytest.mark.spec("mmio.1.1", "mmio.1.2")
def test_the_device_says_what_it_is(machine: Machine) -> None:
    assert machine.read(Register.MAGIC_VALUE) == 0x74726976
    assert machine.read(Register.VERSION) == 2


@pytest.mark.spec("mmio.1.3")
@pytest.mark.parametrize("event", [USED_BUFFER, CONFIG_CHANGE])
def test_an_event_shows_from_its_interrupt_until_it_is_acknowledged(live: Machine, event: int) -> None:
    if event == USED_BUFFER:
        live.transport.notify_used()
    else:
        live.device.change_config(b"\xff")
    assert live.queues.interrupts == 1
    live.write(Register.INTERRUPT_ACK, ~event & 0xFFFFFFFF)
    assert live.read(Register.INTERRUPT_STATUS) == event
    live.write(Register.INTERRUPT_ACK, event)
    assert live.read(Register.INTERRUPT_STATUS) == 0


@pytest.mark.spec("mmio.1.3")
def test_the_event_is_visible_when_the_interrupt_arrives(live: Machine) -> None:
    seen: list[int] = []
    live.queues.raise_interrupt = lambda: seen.append(live.read(Register.INTERRUPT_STATUS))  # type: ignore[method-assign]
    live.transport.notify_used()
    live.device.change_config(b"\xff")
    assert seen == [USED_BUFFER, USED_BUFFER | CONFIG_CHANGE]


@pytest.mark.spec("mmio.1.4")
def test_bits_of_events_that_did_not_happen_are_zero(live: Machine) -> None:
    assert live.read(Register.INTERRUPT_STATUS) == 0
    live.write(Register.INTERRUPT_STATUS, 0xFFFFFFFF)
    assert live.read(Register.INTERRUPT_STATUS) == 0
    live.transport.notify_used()
    assert live.read(Register.INTERRUPT_STATUS) == USED_BUFFER
    live.write(Register.INTERRUPT_ACK, 0xFFFFFFFF)
    live.transport.fail(GuestError("anything"))
    assert live.read(Register.INTERRUPT_STATUS) == CONFIG_CHANGE


@pytest.mark.spec("mmio.1.5")
def test_a_reset_clears_events_and_ready_bits(live: Machine) -> None:
    live.transport.notify_used()
    live.device.change_config(b"\xff")
    live.write(Register.STATUS, 0)
    assert live.read(Register.INTERRUPT_STATUS) == 0
    for index in (0, 1):
        live.write(Register.QUEUE_SEL, index)
        assert live.read(Register.QUEUE_READY) == 0


@pytest.mark.spec("mmio.1.6")
def test_the_generation_moves_with_every_change(live: Machine) -> None:
    seen = set()
    for value in range(10):
        live.device.change_config(bytes([200 + value]))
        seen.add(live.read(Register.CONFIG_GENERATION))
    assert len(seen) == 10


@pytest.mark.spec("mmio.1.6")
def test_the_generation_moves_even_when_the_device_has_not_called_back_yet(live: Machine) -> None:
    """The content changes in one thread while the driver reads in another: two halves of different states."""
    before = live.read(Register.CONFIG_GENERATION)
    low = live.transport.read(CONFIG, 4)
    live.device.config[:8] = b"\xff" * 8
    high = live.transport.read(CONFIG + 4, 4)
    assert (low, high) == (0x04030201, 0xFFFFFFFF)
    assert live.read(Register.CONFIG_GENERATION) != before


@pytest.mark.spec("mmio.1.6")
def test_the_generation_stays_while_the_configuration_does(live: Machine) -> None:
    before = live.read(Register.CONFIG_GENERATION)
    for offset in range(0, 24, 4):
        live.transport.read(CONFIG + offset, 4)
    assert live.read(Register.CONFIG_GENERATION) == before


@pytest.mark.spec("mmio.1.7")
def test_a_queue_that_is_not_ready_is_not_touched() -> None:
    machine = Machine.with_rings()
    queue = GuestQueue()
    machine.negotiate(0)
    machine.driver.setup_queue(0, queue.size, queue.desc, queue.avail, queue.used)
    machine.driver.stop_queue(0)
    queue.offer()
    before = bytes(queue.buffer.view)
    machine.driver.driver_ok()
    machine.driver.kick(0)
    machine.driver.setup_queue(0, queue.size, queue.desc, queue.avail, queue.used)
    assert len(machine.device.processed) == 1
    machine.driver.stop_queue(0)
    served = bytes(queue.buffer.view)
    assert served != before
    queue.offer()
    offered = bytes(queue.buffer.view)
    machine.driver.kick(0)
    assert queue.buffer.view == offered
    assert len(machine.device.processed) == 1


@pytest.mark.spec("mmio.1.8")
def test_queue_reset_reads_0_after_a_device_reset(live: Machine) -> None:
    live.write(Register.QUEUE_SEL, 1)
    live.write(Register.QUEUE_RESET, 1)
    live.write(Register.STATUS, 0)
    for index in (0, 1):
        live.write(Register.QUEUE_SEL, index)
        assert live.read(Register.QUEUE_RESET) == 0


@pytest.mark.spec("mmio.1.9")
def test_queue_reset_reads_0_after_the_queue_is_enabled(live: Machine) -> None:
    live.driver.reset_queue(0)
    live.setup_queue(0)
    assert live.read(Register.QUEUE_READY) == 1
    assert live.read(Register.QUEUE_RESET) == 0


@pytest.mark.spec("mmio.1.10", "mmio.1.12")
def test_writing_queue_reset_resets_that_queue_alone(live: Machine) -> None:
    live.write(Register.QUEUE_SEL, 1)
    live.write(Register.QUEUE_RESET, 1)
    assert live.read(Register.QUEUE_RESET) == 0
    assert live.read(Register.QUEUE_READY) == 0
    assert set(live.queues.running) == {0}
    live.write(Register.QUEUE_SEL, 0)
    assert live.read(Register.QUEUE_READY) == 1


@pytest.mark.spec("mmio.1.11")
def test_no_driver_can_read_queue_reset_while_it_is_going_on(live: Machine) -> None:
    """The queue has stopped when the write is answered, so a 0 read after it never says so too early."""
    stopped: list[int] = []
    live.queues.on_stop = stopped.append
    live.write(Register.QUEUE_SEL, 1)
    live.write(Register.QUEUE_RESET, 1)
    assert stopped == [1]
    assert 1 not in live.queues.running
    assert live.read(Register.QUEUE_RESET) == 0


@pytest.mark.spec("shared-mem.1.1")
def test_no_shared_memory_is_exposed() -> None:
    machine = Machine(FakeDevice(features=features.DEVICE_BITS))
    for region in [*range(256), 0xFFFFFFFF]:
        machine.write(Register.SHM_SEL, region)
        length = machine.read(Register.SHM_LEN_LOW) | machine.read(Register.SHM_LEN_HIGH) << 32
        base = machine.read(Register.SHM_BASE_LOW) | machine.read(Register.SHM_BASE_HIGH) << 32
        assert length == base == (1 << 64) - 1
