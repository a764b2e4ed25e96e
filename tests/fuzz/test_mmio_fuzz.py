"""Any sequence of register accesses, events and take-overs: what must hold after each of them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.virtio.fakes import FakeDevice, FakeQueues, Machine
from xenvirtio.errors import GuestError
from xenvirtio.virtio import features
from xenvirtio.virtio.device import QueueConfiguration
from xenvirtio.virtio.status import Status
from xenvirtio.virtio.transports.mmio_layout import CONFIG, Register

SIZES = (256, 64, 1)

offsets = st.one_of(st.sampled_from(list(Register)), st.integers(CONFIG, CONFIG + 40), st.integers(0, 1 << 64))
widths = st.one_of(st.just(4), st.just(4), st.just(4), st.sampled_from([0, 1, 2, 3, 8, 16, 1 << 31]))
values = st.one_of(
    st.integers(0, 3),
    st.sampled_from([0x0F, 0x0B, 64, 256, features.VERSION_1 >> 32, 0xFFFFFFFF, 1 << 63, (1 << 64) - 1]),
    st.integers(0, (1 << 64) - 1),
)
indices = st.integers(0, len(SIZES))
queue_sizes = st.sampled_from([0, 1, 1, 1, 2, 3, 16, 16, 16, 24, 64, 256, 512, 0x80000000])
areas = st.sampled_from([0, 0, 0, 0, 1, 2, 4, 8, 16, 0x1000])

# Raw accesses rarely get deep: the rest is what a driver that knows the way, or nearly so, does in one go.
actions = st.one_of(
    st.tuples(st.just("read"), offsets, widths, st.just(0)),
    st.tuples(st.just("write"), offsets, widths, values),
    st.tuples(st.just("write"), st.sampled_from(list(Register)), st.just(4), st.integers(0, 3)),
    st.tuples(st.just("set up"), indices, queue_sizes, areas),
    st.tuples(st.just("kick"), indices, st.just(0), st.just(0)),
    st.tuples(st.just("stop"), indices, st.just(0), st.just(0)),
    st.tuples(
        st.sampled_from(["boot", "boot", "live", "reset", "fail", "used", "config", "refuse", "successor"]),
        indices,
        st.just(0),
        st.just(0),
    ),
)
sequences = st.lists(actions, min_size=15, max_size=40)  # hypothesis keeps lists of no least length short


class CheckingQueues(FakeQueues):
    """Refuses by assertion what a transport must never ask for."""

    def start_queue(self, index: int, configuration: QueueConfiguration, features: int, *, resume: bool) -> None:
        size = configuration.size
        assert 0 <= index < len(SIZES)
        assert 0 < size <= SIZES[index]
        assert size & (size - 1) == 0
        assert configuration.desc % 16 == configuration.driver % 2 == configuration.device % 4 == 0
        super().start_queue(index, configuration, features, resume=resume)

    def kick(self, index: int) -> None:
        assert index in self.running
        super().kick(index)


def make(predecessor: Machine | None = None) -> Machine:
    page = predecessor.page if predecessor else None
    return Machine(FakeDevice(queue_sizes=SIZES), CheckingQueues(), page=page)


def perform(machine: Machine, action: str, offset: int, size: int, value: int) -> Machine:
    if action == "read":
        assert 0 <= machine.transport.read(offset, size) < 1 << 8 * min(max(size, 1), 8)
    elif action == "write":
        machine.transport.write(offset, size, value)
    elif action == "boot":
        machine.negotiate()
        if offset:
            machine.setup_queue(0)
            machine.driver.driver_ok()
    elif action == "set up":
        machine.write(Register.QUEUE_SEL, offset)
        machine.write(Register.QUEUE_SIZE, size)
        for register in (Register.QUEUE_DESC_LOW, Register.QUEUE_DRIVER_LOW, Register.QUEUE_DEVICE_LOW):
            machine.write(register, value)
        machine.write(Register.QUEUE_READY, 1)
    elif action == "kick":
        machine.driver.kick(offset)
    elif action == "stop":
        machine.driver.stop_queue(offset)
    elif action == "live":
        machine.driver.driver_ok()
    elif action == "reset":
        machine.driver.reset()
    elif action == "fail":
        machine.transport.fail(GuestError("fuzz"))
    elif action == "used":
        machine.transport.notify_used()
    elif action == "config":
        machine.device.change_config(bytes([offset + 100]))
    elif action == "refuse":
        machine.queues.refuse = GuestError("rings that were not granted")
    else:
        machine = make(machine)
        machine.transport.restore()
    return machine


@given(sequences)
def test_no_sequence_of_accesses_breaks_the_transport(sequence: list[tuple[str, int, int, int]]) -> None:
    machine = make()
    for action, offset, size, value in sequence:
        machine = perform(machine, action, offset, size, value)
        state = machine.registers
        assert not state.status & Status.SUSPEND
        if not state.status & Status.DRIVER_OK:
            assert not machine.queues.running, "a queue runs without DRIVER_OK"
        ready = {index for index in range(len(SIZES)) if state.queues[index].ready}
        assert set(machine.queues.running) <= ready
        if machine.transport.is_live:
            assert set(machine.queues.running) == ready
        if state.status & Status.FEATURES_OK:
            assert not state.driver_features & ~machine.transport.offered_features
            assert state.driver_features & features.VERSION_1
        assert not any(queue.size or queue.ready for queue in state.queues[len(SIZES) :])
    machine.transport.write(Register.STATUS, 4, 0)
    assert not machine.queues.running
    machine.registers.config_generation = 0
    assert not any(machine.page.view)
    machine.queues.refuse = None
    machine.go_live(queues=2)
    assert machine.transport.is_live
