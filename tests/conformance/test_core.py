"""What VIRTIO 1.4 demands of every device (chapters 2, 3 and 6), shown over MMIO with real rings.

The statements themselves are in `virtio-1.4-cs01.tsv` by id, file and line.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.virtio.fakes import CONFIG, FakeDevice, GuestQueue, Machine, RingQueues
from xenvirtio.errors import GuestError, UsageError
from xenvirtio.virtio import features
from xenvirtio.virtio.status import Status
from xenvirtio.virtio.transports.lifecycle import SUPPORTED_FEATURES, TRANSPORT_FEATURES
from xenvirtio.virtio.transports.mmio_layout import CONFIG_CHANGE, USED_BUFFER, Register

DEVICE_FEATURES = 1 << 1 | 1 << 5 | 1 << 70
OFFERED = DEVICE_FEATURES | TRANSPORT_FEATURES


class Served:
    """A machine whose queue 0 is a real ring, and that ring."""

    def __init__(self) -> None:
        self.machine = Machine.with_rings()
        self.queue = GuestQueue()

    def set_up(self, wanted: int = features.RING_RESET | features.IN_ORDER) -> None:
        self.machine.negotiate(wanted)
        self.set_up_queue()

    def set_up_queue(self) -> None:
        queue = self.queue
        self.machine.driver.setup_queue(0, queue.size, queue.desc, queue.avail, queue.used)

    @property
    def consumed(self) -> int:
        return sum(len(heads) for _, heads in self.machine.device.processed)


@pytest.fixture
def served() -> Served:
    return Served()


@pytest.mark.spec("core.1.1")
def test_no_buffer_is_consumed_before_driver_ok(served: Served) -> None:
    served.set_up()
    served.queue.offer()
    served.machine.driver.kick(0)
    assert served.consumed == 0
    assert served.machine.queues.interrupts == 0
    assert served.queue.ring.collect() == []
    served.machine.driver.driver_ok()
    assert served.consumed == 1
    assert served.machine.registers.interrupt_status == USED_BUFFER


@pytest.mark.spec("core.1.2", "core.1.3")
def test_a_broken_ring_sets_needs_reset_and_sends_a_configuration_change(served: Served) -> None:
    served.set_up()
    served.machine.driver.driver_ok()
    served.queue.buffer.view[16 * served.queue.size + 2] = served.queue.size + 1  # an avail index too far ahead
    served.machine.driver.kick(0)
    assert served.machine.driver.status & Status.DEVICE_NEEDS_RESET
    assert served.machine.registers.interrupt_status & CONFIG_CHANGE
    assert served.machine.queues.interrupts == 1


@pytest.mark.spec("core.1.3")
def test_a_device_that_failed_before_driver_ok_tells_the_driver_at_driver_ok(served: Served) -> None:
    served.set_up()
    served.machine.transport.fail(GuestError("broken early"))
    assert served.machine.queues.interrupts == 0
    served.machine.driver.driver_ok()
    assert served.machine.registers.interrupt_status == CONFIG_CHANGE
    assert served.machine.queues.interrupts == 1


@pytest.mark.spec("core.2.1")
@pytest.mark.parametrize("bit", list(features.bits(SUPPORTED_FEATURES & ~features.VERSION_1)))
def test_no_feature_of_the_transport_needs_another_one(bit: int) -> None:
    """Each can be the only one on offer: it is accepted, and the device goes live."""
    machine = Machine(FakeDevice(features=0), transport_features=features.VERSION_1 | 1 << bit)
    machine.go_live()
    assert machine.device.log[-1] == ("activate", features.VERSION_1 | 1 << bit)
    assert machine.queues.running


@pytest.mark.spec("core.2.2")
@given(st.integers(0, (1 << 128) - 1))
def test_every_subset_with_version_1_is_accepted(wanted: int) -> None:
    machine = Machine(FakeDevice(DEVICE_FEATURES))
    machine.go_live(wanted)
    assert machine.device.log[-1] == ("activate", wanted & OFFERED | features.VERSION_1)


@pytest.mark.spec("core.2.3")
@pytest.mark.parametrize("bit", [bit for bit in range(128) if not OFFERED >> bit & 1])
def test_a_feature_that_was_not_offered_keeps_features_ok_away(bit: int) -> None:
    machine = Machine(FakeDevice(DEVICE_FEATURES))
    assert not accepts(machine, features.VERSION_1 | 1 << bit)
    assert accepts(machine, features.VERSION_1)


@pytest.mark.spec("core.2.3")
def test_a_driver_without_version_1_is_refused() -> None:
    assert not accepts(Machine(), features.RING_EVENT_IDX)


def accepts(machine: Machine, taken: int) -> bool:
    """Take exactly these features, offered or not; say whether FEATURES_OK stays."""
    machine.driver.reset()
    for index in range(features.WORDS):
        machine.write(Register.DRIVER_FEATURES_SEL, index)
        machine.write(Register.DRIVER_FEATURES, features.word(taken, index))
    machine.write(Register.STATUS, Status.ACKNOWLEDGE | Status.DRIVER | Status.FEATURES_OK)
    return bool(machine.driver.status & Status.FEATURES_OK)


@pytest.mark.spec("core.2.4")
def test_only_what_the_device_and_the_transport_support_is_offered() -> None:
    assert Machine(FakeDevice(DEVICE_FEATURES)).driver.offered_features() == OFFERED
    for bit in range(128):
        if not SUPPORTED_FEATURES >> bit & 1:
            with pytest.raises(UsageError):
                Machine(transport_features=TRANSPORT_FEATURES | 1 << bit)
        if not features.DEVICE_BITS >> bit & 1:
            with pytest.raises(UsageError):
                Machine(FakeDevice(features=1 << bit))


@pytest.mark.spec("core.2.5")
@given(st.integers(0, (1 << 128) - 1))
def test_what_was_negotiated_once_is_negotiated_again(wanted: int) -> None:
    machine = Machine(FakeDevice(DEVICE_FEATURES))
    machine.go_live(wanted)
    first = machine.registers.driver_features
    machine.transport.fail(GuestError("anything"))
    machine.go_live(wanted)
    assert machine.registers.driver_features == first
    assert machine.transport.is_live


@pytest.mark.spec("core.3.1")
@pytest.mark.parametrize("failed", [False, True])
def test_a_reset_ends_with_status_0(served: Served, failed: bool) -> None:
    served.set_up()
    served.machine.driver.driver_ok()
    if failed:
        served.machine.transport.fail(GuestError("anything"))
    served.machine.write(Register.STATUS, 0)
    assert served.machine.read(Register.STATUS) == 0


@pytest.mark.spec("core.3.2")
def test_after_a_reset_nothing_is_consumed_and_nothing_is_sent(served: Served) -> None:
    served.set_up()
    served.machine.driver.driver_ok()
    served.machine.driver.reset()
    sent = served.machine.queues.interrupts
    served.queue.offer()
    served.machine.driver.kick(0)
    served.machine.device.change_config(b"\xff")
    assert served.consumed == 0
    assert served.machine.queues.interrupts == sent
    assert served.machine.registers.interrupt_status == 0
    assert isinstance(served.machine.queues, RingQueues)
    assert not served.machine.queues.rings


@pytest.mark.spec("core.4.1")
@pytest.mark.parametrize("status", [0, Status.ACKNOWLEDGE, Status.ACKNOWLEDGE | Status.DRIVER])
def test_all_configuration_can_be_read_before_features_ok(status: int) -> None:
    machine = Machine()
    if status:
        machine.write(Register.STATUS, status)
    assert machine.driver.read_config(0, len(CONFIG)) == CONFIG


@pytest.mark.spec("core.5.1")
def test_a_queue_that_was_reset_is_not_served(served: Served) -> None:
    served.set_up()
    served.machine.driver.driver_ok()
    served.machine.driver.reset_queue(0)
    sent = served.machine.queues.interrupts
    served.queue.offer()
    served.machine.driver.kick(0)
    assert served.consumed == 0
    assert served.machine.queues.interrupts == sent


@pytest.mark.spec("core.5.2")
def test_a_queue_that_was_reset_starts_from_the_beginning(served: Served) -> None:
    served.set_up()
    served.machine.driver.driver_ok()
    for _ in range(3):
        served.queue.offer()
    served.machine.driver.kick(0)
    served.machine.driver.reset_queue(0)
    registers = served.machine.registers.queues[0]
    assert (registers.size, registers.ready, registers.desc, registers.driver, registers.device) == (0, False, 0, 0, 0)
    served.queue = GuestQueue()  # both indices are 0 again
    served.set_up_queue()
    served.queue.offer("again")
    served.machine.driver.kick(0)
    assert [token for token, _ in served.queue.ring.collect()] == ["again"]


@pytest.mark.spec("core.6.1")
def test_a_queue_can_come_back_different_after_its_reset(served: Served) -> None:
    served.set_up()
    served.machine.driver.driver_ok()
    served.machine.driver.reset_queue(0)
    served.queue = GuestQueue(size=64)
    assert served.machine.driver.queue_size_max(0) == 256
    served.set_up_queue()
    assert served.machine.queues.running[0].size == 64
    for number in range(40):
        served.queue.offer(number)
    served.machine.driver.kick(0)
    assert [token for token, _ in served.queue.ring.collect()] == list(range(40))


@pytest.mark.spec("core.7.1")
def test_the_suspend_bit_is_ignored(served: Served) -> None:
    machine = served.machine
    machine.write(Register.STATUS, Status.SUSPEND)
    assert machine.read(Register.STATUS) == 0
    served.set_up()
    status = machine.read(Register.STATUS)
    machine.write(Register.STATUS, status | Status.SUSPEND)
    assert machine.read(Register.STATUS) == status
    machine.driver.driver_ok()
    served.queue.offer()
    machine.driver.kick(0)
    assert served.consumed == 1


@pytest.mark.spec("core.8.1", "core.8.2", "core.8.5")
def test_what_is_offered_of_the_reserved_bits() -> None:
    offered = Machine().driver.offered_features()
    assert offered & features.VERSION_1
    assert offered & features.ACCESS_PLATFORM
    assert not offered & features.SR_IOV


@pytest.mark.spec("core.8.3")
def test_buffers_come_back_in_the_order_in_which_they_were_offered(served: Served) -> None:
    served.set_up()
    assert served.machine.registers.driver_features & features.IN_ORDER
    served.machine.driver.driver_ok()
    came_back: list[object] = []
    for round_number in range(10):
        for number in range(10):
            served.queue.offer((round_number, number))
        served.machine.driver.kick(0)
        came_back += [token for token, _ in served.queue.ring.collect()]
    assert came_back == [(round_number, number) for round_number in range(10) for number in range(10)]
