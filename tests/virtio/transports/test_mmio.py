from __future__ import annotations

import threading

import pytest

from tests.virtio.fakes import CONFIG, FakeDevice, FakeQueues, GuestQueue, Machine, RingQueues
from xenvirtio.errors import GuestError, HypervisorError, UsageError
from xenvirtio.memory.buffer import HostBuffer
from xenvirtio.virtio import features
from xenvirtio.virtio.device import QueueConfiguration
from xenvirtio.virtio.status import Status
from xenvirtio.virtio.transports.lifecycle import SUPPORTED_FEATURES, TRANSPORT_FEATURES
from xenvirtio.virtio.transports.mmio_layout import CONFIG as CONFIG_OFFSET
from xenvirtio.virtio.transports.mmio_layout import CONFIG_CHANGE, USED_BUFFER, Register

LIVE = Status.ACKNOWLEDGE | Status.DRIVER | Status.FEATURES_OK | Status.DRIVER_OK


def live_machine(wanted: int = (1 << 128) - 1) -> Machine:
    machine = Machine()
    machine.go_live(wanted)
    return machine


# Accesses


@pytest.mark.parametrize("size", [0, 1, 2, 3, 8, 16])
def test_control_registers_know_32_bit_accesses_only(size: int) -> None:
    machine = Machine()
    assert machine.transport.read(Register.MAGIC_VALUE, size) == 0
    machine.transport.write(Register.STATUS, size, 1)
    assert machine.read(Register.STATUS) == 0
    assert machine.transport.rejected_accesses == 2


@pytest.mark.parametrize("offset", [1, 2, 3, 0x18, 0x40, 0xFE])
def test_between_the_registers_there_is_nothing(offset: int) -> None:
    machine = Machine()
    assert machine.read(offset) == 0
    machine.write(offset, 0xFFFFFFFF)
    assert machine.transport.rejected_accesses == 2
    assert not any(machine.page.view)


def test_registers_have_a_direction() -> None:
    machine = Machine()
    machine.write(Register.MAGIC_VALUE, 7)
    assert machine.read(Register.MAGIC_VALUE) == 0x74726976
    machine.write(Register.QUEUE_SEL, 1)
    assert machine.read(Register.QUEUE_SEL) == 0


def test_only_the_low_32_bits_of_a_value_count() -> None:
    machine = Machine()
    machine.write(Register.STATUS, 0xDEAD_0000_0000 | Status.ACKNOWLEDGE)
    assert machine.registers.status == Status.ACKNOWLEDGE


def test_no_shared_memory_region_exists() -> None:
    machine = Machine()
    for region in (0, 1, 0xFFFFFFFF):
        machine.write(Register.SHM_SEL, region)
        assert machine.registers.shm_sel == region
        for half in ("LEN_LOW", "LEN_HIGH", "BASE_LOW", "BASE_HIGH"):
            assert machine.read(Register[f"SHM_{half}"]) == 0xFFFFFFFF


# Offers


def test_a_subset_of_the_transport_features_can_be_offered() -> None:
    machine = Machine(FakeDevice(features=1), transport_features=features.VERSION_1 | features.NOTIFICATION_DATA)
    assert machine.driver.offered_features() == 1 | features.VERSION_1 | features.NOTIFICATION_DATA


@pytest.mark.parametrize("bit", sorted(set(features.NAMES) - set(features.bits(SUPPORTED_FEATURES))))
def test_what_cannot_be_served_is_not_offered(bit: int) -> None:
    with pytest.raises(UsageError, match=features.NAMES[bit]):
        Machine(transport_features=TRANSPORT_FEATURES | 1 << bit)
    with pytest.raises(UsageError, match=features.NAMES[bit]):
        Machine(FakeDevice(features=1 << bit))


def test_version_1_is_not_optional() -> None:
    with pytest.raises(UsageError, match="VERSION_1"):
        Machine(transport_features=features.RING_RESET)


@pytest.mark.parametrize("sizes", [(0,), (3,), (65536,), (16,) * 65])
def test_impossible_queues_are_a_bug_of_the_device(sizes: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match="queue"):
        Machine(FakeDevice(queue_sizes=sizes))


# Status and features


def test_missing_bits_in_a_status_write_clear_nothing() -> None:
    machine = live_machine()
    machine.write(Register.STATUS, Status.FAILED)
    assert machine.registers.status == LIVE | Status.FAILED


def test_a_value_with_no_known_status_bit_is_no_reset() -> None:
    machine = live_machine()
    machine.write(Register.STATUS, 0x100)
    assert machine.registers.status == LIVE


def test_a_driver_cannot_ask_for_its_own_reset_bit() -> None:
    machine = Machine()
    machine.write(Register.STATUS, Status.DEVICE_NEEDS_RESET | Status.ACKNOWLEDGE)
    assert machine.registers.status == Status.ACKNOWLEDGE


def test_features_are_fixed_by_features_ok() -> None:
    machine = Machine()
    taken = machine.negotiate()
    machine.write(Register.DRIVER_FEATURES_SEL, 0)
    machine.write(Register.DRIVER_FEATURES, 0)
    assert machine.registers.driver_features == taken


def test_feature_words_beyond_the_last_do_not_exist() -> None:
    machine = Machine()
    machine.write(Register.DRIVER_FEATURES_SEL, 4)
    machine.write(Register.DRIVER_FEATURES, 0xFFFFFFFF)
    machine.write(Register.DEVICE_FEATURES_SEL, 4)
    assert machine.registers.driver_features == 0
    assert machine.registers.queue_sel == 0
    assert machine.read(Register.DEVICE_FEATURES) == 0


def test_refused_features_are_named_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    machine = Machine()
    machine.write(Register.DRIVER_FEATURES_SEL, 1)
    machine.write(Register.DRIVER_FEATURES, (features.VERSION_1 | features.SR_IOV | 1 << 60) >> 32)
    machine.write(Register.STATUS, Status.FEATURES_OK)
    assert caplog.messages == ["virtio-mmio: FEATURES_OK refused: not offered: SR_IOV, bit 60"]


def test_driver_ok_without_features_ok_is_a_broken_rule() -> None:
    machine = Machine()
    machine.write(Register.STATUS, Status.ACKNOWLEDGE | Status.DRIVER | Status.DRIVER_OK)
    assert machine.registers.status == Status.ACKNOWLEDGE | Status.DRIVER | Status.DEVICE_NEEDS_RESET
    assert not machine.device.log


def test_features_ok_and_driver_ok_may_come_together() -> None:
    machine = Machine()
    machine.write(Register.DRIVER_FEATURES_SEL, 1)
    machine.write(Register.DRIVER_FEATURES, features.VERSION_1 >> 32)
    machine.write(Register.STATUS, LIVE)
    assert machine.device.log == [("activate", features.VERSION_1)]


def test_going_live_starts_the_queues_that_are_ready() -> None:
    machine = Machine()
    taken = machine.negotiate()
    configuration = machine.setup_queue(1)
    assert not machine.queues.running
    machine.driver.driver_ok()
    assert machine.device.log[-1] == ("activate", taken)
    assert machine.queues.log[-1] == ("start", 1, configuration, taken)
    assert machine.queues.running == {1: configuration}


def test_a_reset_stops_queues_before_the_device_and_then_forgets() -> None:
    machine = live_machine()
    machine.device.log.clear()
    states: list[object] = []
    machine.queues.on_stop = lambda index: states.append((index, list(machine.device.log), machine.registers.status))
    generation = machine.registers.config_generation
    machine.driver.reset()
    assert states == [(0, [], LIVE), (1, [], LIVE)]
    assert machine.device.log == [("reset",)]
    assert not machine.queues.running
    assert machine.registers.config_generation != generation
    machine.registers.config_generation = 0
    assert not any(machine.page.view)


# Queues


def test_a_queue_that_does_not_exist_takes_nothing() -> None:
    machine = Machine()
    machine.write(Register.QUEUE_SEL, 2)
    for register in (Register.QUEUE_SIZE, Register.QUEUE_DESC_LOW, Register.QUEUE_READY, Register.QUEUE_RESET):
        machine.write(register, 1)
    assert machine.read(Register.QUEUE_SIZE_MAX) == machine.read(Register.QUEUE_READY) == 0
    assert not any(machine.page.view[256:])
    assert not machine.queues.log


def test_a_ready_queue_cannot_be_configured() -> None:
    machine = Machine()
    machine.negotiate()
    machine.setup_queue(0, desc=0x10000)
    before = bytes(machine.page.view[256:288])
    machine.write(Register.QUEUE_SIZE, 8)
    machine.write(Register.QUEUE_DESC_LOW, 0)
    machine.write(Register.QUEUE_DEVICE_HIGH, 1)
    assert machine.page.view[256:288] == before


@pytest.mark.parametrize("size", [0, 3, 24, 512, 0x80000000, 0xFFFFFFFF])
def test_an_impossible_size_refuses_the_queue(size: int) -> None:
    machine = Machine()
    machine.negotiate()
    machine.write(Register.QUEUE_SIZE, size)
    machine.write(Register.QUEUE_READY, 1)
    assert machine.read(Register.QUEUE_READY) == 0
    assert machine.driver.status & Status.DEVICE_NEEDS_RESET
    machine.driver.driver_ok()
    assert not machine.queues.running
    assert ("activate", machine.registers.driver_features) not in machine.device.log


@pytest.mark.parametrize(
    ("register", "address"),
    [(Register.QUEUE_DESC_LOW, 8), (Register.QUEUE_DRIVER_LOW, 1), (Register.QUEUE_DEVICE_LOW, 2)],
)
def test_a_misaligned_area_refuses_the_queue(register: Register, address: int) -> None:
    machine = Machine()
    machine.negotiate()
    machine.write(Register.QUEUE_SIZE, 16)
    machine.write(register, address)
    machine.write(Register.QUEUE_READY, 1)
    assert machine.read(Register.QUEUE_READY) == 0
    assert machine.driver.status & Status.DEVICE_NEEDS_RESET


def test_a_queue_made_ready_later_starts_at_once() -> None:
    machine = live_machine()
    configuration = machine.setup_queue(1, desc=0x40000)
    assert machine.queues.running[1] == configuration


@pytest.mark.parametrize("value", [2, 3, 0xFFFFFFFF])
def test_ready_is_one_or_zero(value: int) -> None:
    machine = live_machine()
    machine.write(Register.QUEUE_SEL, 0)
    machine.write(Register.QUEUE_READY, value)
    assert 0 in machine.queues.running
    assert machine.read(Register.QUEUE_READY) == 1


@pytest.mark.parametrize("register", [Register.QUEUE_READY, Register.QUEUE_RESET])
def test_a_queue_has_stopped_when_the_write_returns(register: Register) -> None:
    machine = live_machine()
    ready: list[int] = []
    machine.queues.on_stop = lambda index: ready.append(machine.read(Register.QUEUE_READY))
    machine.write(Register.QUEUE_SEL, 0)
    machine.write(register, int(register == Register.QUEUE_RESET))
    assert not machine.queues.running
    assert ready == [1], "the ready bit fell before the queue had stopped"
    assert machine.read(Register.QUEUE_READY) == 0


def test_queue_reset_needs_its_feature() -> None:
    machine = live_machine(wanted=0)
    machine.write(Register.QUEUE_SEL, 0)
    machine.write(Register.QUEUE_RESET, 1)
    assert 0 in machine.queues.running


@pytest.mark.parametrize("error", [GuestError("no such memory"), HypervisorError("map", 12)])
def test_rings_that_cannot_be_mapped_cost_only_this_device(error: GuestError | HypervisorError) -> None:
    machine = Machine()
    machine.negotiate()
    machine.setup_queue(0)
    machine.queues.refuse = error
    machine.driver.driver_ok()
    assert machine.registers.status == LIVE | Status.DEVICE_NEEDS_RESET
    assert machine.registers.interrupt_status == CONFIG_CHANGE
    machine.go_live()
    assert machine.registers.status == LIVE


def test_kicks_reach_running_queues_only() -> None:
    machine = Machine()
    machine.negotiate()
    machine.setup_queue(0)
    machine.write(Register.QUEUE_NOTIFY, 0)
    machine.driver.driver_ok()
    for index in (0, 1, 2, 64, 0x10000, 0xFFFFFFFF):
        machine.write(Register.QUEUE_NOTIFY, index)
    assert [entry for entry in machine.queues.log if entry[0] == "kick"] == [("kick", 0)]


def test_notification_data_names_the_queue_in_its_low_half() -> None:
    machine = Machine(transport_features=TRANSPORT_FEATURES | features.NOTIFICATION_DATA)
    machine.go_live(queues=2)
    machine.write(Register.QUEUE_NOTIFY, 0x8005 << 16 | 1)
    assert machine.queues.log[-1] == ("kick", 1)


# Failure


def test_a_failure_is_told_once_and_ends_all_kicks(caplog: pytest.LogCaptureFixture) -> None:
    machine = live_machine()
    machine.transport.fail(GuestError("chain loops", queue_index=0))
    machine.transport.fail(GuestError("chain loops", queue_index=0))
    assert machine.queues.interrupts == 1
    assert caplog.messages == ["virtio-mmio: the device needs a reset: queue 0: chain loops"]
    machine.driver.kick(0)
    assert machine.queues.log[-1][0] != "kick"
    assert machine.transport.failures == 1


def test_a_queue_can_report_from_its_own_thread_while_it_is_stopped() -> None:
    machine = live_machine()

    def stop(index: int) -> None:
        worker = threading.Thread(target=machine.transport.fail, args=(GuestError("broken"),))
        worker.start()
        worker.join(5)
        assert not worker.is_alive()

    machine.queues.on_stop = stop
    machine.driver.reset()
    assert machine.registers.status == 0


def test_a_guest_that_fails_for_ever_does_not_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    machine = Machine()
    for _ in range(50):
        machine.driver.reset()
        machine.write(Register.QUEUE_READY, 1)
    assert machine.transport.failures == 50
    assert len(caplog.records) == 5


# Configuration space


@pytest.mark.parametrize("size", [1, 2, 4, 8])
@pytest.mark.parametrize("offset", [0, 1, 3, 16, 20, 23, 24, 0xFF, 1 << 20])
def test_configuration_reads_are_little_endian_and_zero_past_the_end(offset: int, size: int) -> None:
    expected = int.from_bytes(CONFIG[offset : offset + size], "little")
    assert Machine().transport.read(CONFIG_OFFSET + offset, size) == expected


@pytest.mark.parametrize("size", [0, 3, 5, 16])
def test_odd_configuration_accesses_are_rejected(size: int) -> None:
    machine = Machine()
    machine.negotiate()
    assert machine.transport.read(CONFIG_OFFSET, size) == 0
    machine.transport.write(CONFIG_OFFSET, size, 1)
    assert machine.transport.rejected_accesses == 2
    assert machine.device.config == CONFIG


def test_a_64_bit_configuration_write_is_two_of_32() -> None:
    machine = Machine()
    machine.negotiate()
    machine.transport.write(CONFIG_OFFSET + 8, 8, 0x8877665544332211)
    assert machine.device.log[-2:] == [
        ("write_config", 8, bytes.fromhex("11223344")),
        ("write_config", 12, bytes.fromhex("55667788")),
    ]


def test_configuration_writes_past_the_end_or_before_features_ok_are_dropped() -> None:
    machine = Machine()
    machine.transport.write(CONFIG_OFFSET, 4, 1)
    machine.negotiate()
    machine.transport.write(CONFIG_OFFSET + len(CONFIG) - 2, 4, 1)
    assert machine.device.config == CONFIG
    assert machine.transport.rejected_accesses == 2


def test_a_change_reaches_a_live_driver() -> None:
    machine = live_machine()
    generation = machine.registers.config_generation
    machine.device.change_config(b"\xff")
    assert machine.registers.config_generation == generation + 1
    assert machine.registers.interrupt_status == CONFIG_CHANGE
    assert machine.queues.interrupts == 1


def test_a_change_during_initialisation_is_delivered_at_driver_ok() -> None:
    machine = Machine()
    machine.negotiate()
    machine.device.change_config(b"\xff")
    assert machine.queues.interrupts == 0
    machine.driver.driver_ok()
    assert machine.queues.interrupts == 1
    assert machine.registers.interrupt_status == CONFIG_CHANGE


def test_a_change_before_any_driver_concerns_nobody() -> None:
    machine = Machine()
    machine.device.change_config(b"\xff")
    machine.go_live()
    assert machine.queues.interrupts == 0
    assert machine.registers.interrupt_status == 0


def test_the_generation_wraps() -> None:
    machine = live_machine()
    machine.registers.config_generation = 0xFFFFFFFF
    machine.device.change_config(b"\xff")
    assert machine.read(Register.CONFIG_GENERATION) == 0


# Taking over from a killed process


def test_a_successor_goes_on_where_the_predecessor_was_killed() -> None:
    machine = live_machine()
    configuration = machine.queues.running[0]
    successor = machine.successor()
    successor.transport.restore()
    assert successor.device.log == [("activate", machine.registers.driver_features)]
    assert successor.queues.log == [("resume", 0, configuration, machine.registers.driver_features)]
    assert successor.registers.interrupt_status == USED_BUFFER
    assert successor.queues.interrupts == 1
    assert successor.driver.status == LIVE


def test_a_successor_of_an_idle_device_stays_idle() -> None:
    machine = Machine()
    machine.negotiate()
    machine.setup_queue(0)
    successor = machine.successor()
    successor.transport.restore()
    assert not successor.queues.log
    assert successor.queues.interrupts == 0
    successor.driver.driver_ok()
    assert successor.queues.log[0][0] == "start"


def test_a_successor_of_a_failed_device_says_so_again() -> None:
    machine = live_machine()
    machine.registers.set_status(Status.DEVICE_NEEDS_RESET)  # and then it was killed
    successor = machine.successor()
    successor.transport.restore()
    assert not successor.queues.running
    assert successor.registers.interrupt_status == CONFIG_CHANGE
    assert successor.queues.interrupts == 1


def test_a_driver_half_way_through_the_configuration_notices_the_successor() -> None:
    machine = live_machine()
    generation = machine.read(Register.CONFIG_GENERATION)
    successor = machine.successor()
    successor.transport.restore()
    assert successor.read(Register.CONFIG_GENERATION) != generation


@pytest.mark.parametrize(
    "less", [FakeDevice(features=0), FakeDevice(queue_sizes=(256,)), FakeDevice(queue_sizes=(256, 8))]
)
def test_a_successor_that_offers_less_asks_for_a_reset(less: FakeDevice) -> None:
    machine = Machine()
    machine.go_live(queues=2)
    successor = Machine(less, page=machine.page)
    successor.transport.restore()
    assert successor.driver.status & Status.DEVICE_NEEDS_RESET
    assert successor.registers.interrupt_status & CONFIG_CHANGE
    successor.driver.reset()
    assert not successor.queues.running


def test_a_clean_end_leaves_the_registers_to_a_successor() -> None:
    machine = live_machine()
    before = bytes(machine.page.view)
    machine.transport.close()
    assert machine.page.view == before
    assert not machine.queues.running
    assert machine.device.log[-1] == ("close",)
    assert machine.device.notify_config is None


class Killed(BaseException):
    """kill -9 in the middle of an access: nothing of the process runs after it."""


class Hit:
    """Raises Killed at the `count`-th call into the device or the queue host."""

    def __init__(self, count: int) -> None:
        self.left = count

    def __call__(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise Killed


class MortalDevice(FakeDevice):
    def __init__(self, hit: Hit) -> None:
        super().__init__()
        self.hit = hit

    def activate(self, features: int) -> None:
        self.hit()
        super().activate(features)
        self.hit()

    def reset(self) -> None:
        self.hit()
        super().reset()
        self.hit()


class MortalQueues(FakeQueues):
    def __init__(self, hit: Hit) -> None:
        super().__init__()
        self.hit = hit

    def start_queue(self, index: int, configuration: QueueConfiguration, features: int, *, resume: bool) -> None:
        self.hit()
        super().start_queue(index, configuration, features, resume=resume)
        self.hit()

    def stop_queue(self, index: int) -> None:
        self.hit()
        super().stop_queue(index)
        self.hit()


NEVER = 1 << 30

# what leads there, and the write in which the process dies
SCENES = {
    "going live": (["negotiate", "queue 0", "queue 1"], (Register.STATUS, LIVE)),
    "reset": (["negotiate", "queue 0", "queue 1", "live"], (Register.STATUS, 0)),
    "queue ready": (["negotiate", "queue 0", "live", "queue 1 unready"], (Register.QUEUE_READY, 1)),
    "queue stopped": (["negotiate", "queue 0", "queue 1", "live"], (Register.QUEUE_READY, 0)),
    "queue reset": (["negotiate", "queue 0", "queue 1", "live"], (Register.QUEUE_RESET, 1)),
}


def play(machine: Machine, steps: list[str]) -> None:
    for step in steps:
        if step == "negotiate":
            machine.negotiate()
        elif step == "live":
            machine.driver.driver_ok()
        elif step.endswith("unready"):
            machine.setup_queue(1)
            machine.driver.stop_queue(1)
        else:
            machine.setup_queue(int(step.split()[1]))


@pytest.mark.parametrize("scene", SCENES)
@pytest.mark.parametrize("count", range(1, 8))
def test_an_access_executed_twice_ends_where_once_would(scene: str, count: int) -> None:
    steps, (register, value) = SCENES[scene]
    undisturbed = Machine()
    play(undisturbed, steps)
    undisturbed.write(register, value)

    hit = Hit(NEVER)
    killed = Machine(MortalDevice(hit), MortalQueues(hit))
    play(killed, steps)
    hit.left = count
    try:
        killed.write(register, value)
    except Killed:
        pass
    successor = killed.successor()
    successor.transport.restore()
    successor.write(register, value)

    fresh = {entry[1] for entry in successor.queues.log if entry[0] == "start"}
    assert not fresh & set(killed.queues.running), "a ring that was being served starts from 0 again"
    assert successor.queues.running == undisturbed.queues.running
    # all but the interrupt status (a successor notifies to be safe) and the generation
    assert successor.page.view[4:40] == undisturbed.page.view[4:40]
    assert successor.page.view[256:] == undisturbed.page.view[256:]


@pytest.mark.parametrize("register", list(Register))
@pytest.mark.parametrize("value", [0, 1, 2, 0x0F, 0xFFFFFFFF])
def test_a_write_twice_leaves_the_registers_as_a_write_once(register: Register, value: int) -> None:
    once, twice = live_machine(), live_machine()
    for machine in (once, twice):
        machine.transport.notify_used()
        machine.write(register, value)
    twice.write(register, value)
    twice.registers.config_generation = once.registers.config_generation
    assert twice.page.view == once.page.view
    assert twice.queues.running == once.queues.running


def test_a_successor_serves_what_the_predecessor_left_in_the_ring() -> None:
    machine = Machine.with_rings()
    assert isinstance(machine.queues, RingQueues)
    queue = GuestQueue()
    machine.negotiate(0)
    machine.driver.setup_queue(0, queue.size, queue.desc, queue.avail, queue.used)
    machine.driver.driver_ok()
    queue.offer("first")
    machine.driver.kick(0)
    queue.offer("second")  # and the process is killed before the kick

    device = FakeDevice()
    queues = RingQueues(device)
    successor = Machine(device, queues, page=machine.page)
    queues.transport = successor.transport
    successor.transport.restore()
    assert [token for token, _ in queue.ring.collect()] == ["first", "second"]
    assert len(device.processed) == 1


def test_one_page_holds_one_device() -> None:
    pages = HostBuffer(2 * 4096)
    assert pages.length_bytes == 8192
    first = Machine(page=pages)
    first.go_live()
    assert not any(pages.view[4096:])
