"""Any bytes, any region, any order of messages, restarts and failures: documented errors, and what holds after each."""

from __future__ import annotations

import struct

from hypothesis import given
from hypothesis import strategies as st

from tests.virtio.fakes import FakeDevice, FakeQueues
from tests.virtio.transports.msg_machine import NUMBER, REGION_BYTES, Links, MsgMachine, Pipe
from xenvirtio.errors import GuestError, PeerProtocolError, XenvirtioError
from xenvirtio.virtio.device import QueueConfiguration
from xenvirtio.virtio.msg_driver import MsgDriver
from xenvirtio.virtio.msg_driver_bus import DriverBus
from xenvirtio.virtio.status import Status
from xenvirtio.virtio.transports import msg_layout as layout
from xenvirtio.virtio.transports.msg_codec import Message, parse_message
from xenvirtio.virtio.transports.msg_datagram import DatagramLink, DmaKind
from xenvirtio.virtio.transports.msg_layout import MESSAGE_BYTES_MAX, MessageId
from xenvirtio.virtio.transports.msg_link import LinkState
from xenvirtio.virtio.transports.msg_region import BLOCK_BYTES, DMA_OFFSET, RINGS_OFFSET

SIZES = (256, 64, 1)

ids = st.one_of(st.sampled_from(list(MessageId)), st.integers(0, 255))
words = st.sampled_from([0, 1, 2, 3, 15, 16, 64, 255, 256, 1 << 31, (1 << 32) - 1])
payloads = st.one_of(
    st.binary(max_size=60),
    st.lists(words, max_size=12).map(lambda values: struct.pack(f"<{len(values)}I", *values)),
)
messages = st.builds(
    Message, ids, payloads, st.sampled_from([NUMBER, NUMBER, NUMBER, 0, 65535]), st.sampled_from([0, 1, 65535]),
    st.booleans(), st.booleans(),
)  # fmt: skip


@given(st.binary(max_size=400))
def test_any_bytes_are_a_message_or_the_documented_error(data: bytes) -> None:
    try:
        message = parse_message(data)
    except PeerProtocolError:
        return
    again = parse_message(message.encode())
    assert again == message
    assert len(message.payload) <= MESSAGE_BYTES_MAX - 8


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


actions = st.one_of(
    st.tuples(st.just("message"), messages),
    st.tuples(st.just("status"), st.sampled_from([0, 1, 3, 8, 11, 15, 64, 128, 255])),
    st.tuples(st.just("queue"), st.tuples(st.integers(0, 3), st.sampled_from([0, 1, 2, 3, 16, 64, 512]), words)),
    st.tuples(st.sampled_from(["boot", "fail", "used", "config", "refuse", "restart", "goodbye"]), st.none()),
)


@given(st.lists(actions, min_size=10, max_size=30), st.sampled_from(["region", "datagram"]))
def test_any_sequence_of_messages_leaves_the_device_in_order(sequence: list[tuple[str, object]], kind: str) -> None:
    queues = CheckingQueues()
    machine = MsgMachine(FakeDevice(queue_sizes=SIZES), queues, links=Links(kind))
    bus = machine.driver_bus
    bus.connect(10)
    for action, argument in sequence:
        try:
            _act(machine, bus, action, argument)
        except PeerProtocolError:
            pass
        machine.serve()
        running = machine.registers.status & (Status.DRIVER_OK | Status.DEVICE_NEEDS_RESET) == Status.DRIVER_OK
        if running:
            ready = {index for index in range(len(SIZES)) if machine.registers.queues[index].ready}
            assert set(queues.running) == ready
        if bus._link.state is not LinkState.OPEN:
            machine.serve()
            assert not queues.running
            bus.connect(10)
        assert len(machine.bus._events) <= 2 * len(SIZES) + 2
    driver = MsgDriver(bus, NUMBER)
    for _ in range(200):  # what the driver never took is in its way
        bus.poll()
        machine.serve()
    driver.negotiate((1 << 128) - 1)
    driver.driver_ok()
    assert machine.transport.is_live


def _act(machine: MsgMachine, bus: DriverBus, action: str, argument: object) -> None:
    link = bus._link
    if action == "message":
        assert isinstance(argument, Message)
        link.send(argument.encode())
    elif action == "status":
        assert isinstance(argument, int)
        link.send(Message(MessageId.SET_DEVICE_STATUS, layout.STATUS.pack(argument), NUMBER, 1).encode())
    elif action == "queue":
        assert isinstance(argument, tuple)
        index, size, desc = argument
        payload = layout.QUEUE.pack(index, 0, size, 0, desc * 16, 0x1000, 0x2000)
        link.send(Message(MessageId.SET_VQUEUE, payload, NUMBER, 1).encode())
    elif action == "boot":
        bus.poll()
        driver = MsgDriver(bus, NUMBER)
        driver.negotiate((1 << 128) - 1)
        driver.setup_queue(0, 16, 0x1000, 0x2000, 0x3000)
        driver.driver_ok()
    elif action == "fail":
        machine.transport.fail(GuestError("fuzz"))
    elif action == "used":
        machine.transport.notify_queue(0)
    elif action == "config":
        machine.device.change_config(bytes([machine.device.config[0] ^ 1]))
    elif action == "refuse":
        machine.queues.refuse = GuestError("no")
    elif action == "restart":
        link.announce()
    elif action == "goodbye":
        link.leave()


pokes = st.lists(
    st.tuples(
        st.one_of(
            st.integers(0, 10).map(lambda n: 4 * n),
            st.integers(RINGS_OFFSET // 4, DMA_OFFSET // 4 - 1).map(lambda n: 4 * n),
            st.integers(0, 63).map(lambda slot: RINGS_OFFSET + 256 * slot + 4),
        ),
        st.one_of(words, st.integers(0, (1 << 32) - 1)),
    ),
    min_size=1,
    max_size=40,
)


@given(pokes, st.booleans())
def test_a_driver_that_writes_anything_anywhere_costs_its_session_only(
    sequence: list[tuple[int, int]], before: bool
) -> None:
    """All that a hostile driver's domain can do to the region; the device's end neither hangs nor breaks."""
    machine = MsgMachine(FakeDevice(queue_sizes=SIZES), CheckingQueues(), links=Links("region"))
    if not before:
        machine.driver_bus.connect(10)
        machine.go_live()
    for offset, value in sequence:
        machine.links.memory.view[offset : offset + 4] = struct.pack("<I", value)
        try:
            machine.serve()
        except PeerProtocolError:
            assert not machine.queues.running
            machine.bus.announce()
    machine.links.memory.view[:BLOCK_BYTES] = bytes(BLOCK_BYTES)
    machine.serve()
    fresh = machine.new_driver_bus()
    fresh.connect(10)
    MsgDriver(fresh, NUMBER).negotiate((1 << 128) - 1)


@given(pokes)
def test_a_device_that_writes_anything_anywhere_ends_in_an_error(sequence: list[tuple[int, int]]) -> None:
    machine = MsgMachine(FakeDevice(queue_sizes=SIZES), links=Links("region"))
    machine.driver_bus.connect(10)
    assert machine.links.memory.length_bytes == REGION_BYTES
    for offset, value in sequence:
        where = offset + BLOCK_BYTES if offset < BLOCK_BYTES else offset
        machine.links.memory.view[where : where + 4] = struct.pack("<I", value)
        try:
            machine.driver_bus.poll()
            machine.driver.info()
        except XenvirtioError:
            pass


@given(st.lists(st.binary(max_size=300), max_size=300))
def test_any_datagrams_are_taken_in_bounded_time(datagrams: list[bytes]) -> None:
    pipe = Pipe(1 << 20)
    link = DatagramLink(pipe.end(1), lambda: 5, DmaKind.WINDOW)
    link.announce()
    for data in datagrams:
        pipe.end(0).send(data)
    try:
        while link.state is LinkState.OPEN:
            if link.receive() is None:
                break
    except PeerProtocolError:
        pass


class Lying:
    """A device's end that answers every request with bytes of the test's choosing."""

    def __init__(self, answers: list[bytes]) -> None:
        self.answers = answers
        self.sent: list[Message] = []
        self.problem = None
        self.state = LinkState.OPEN

    def announce(self) -> None: ...
    def remind(self) -> None: ...
    def accept(self) -> None: ...
    def leave(self) -> None: ...

    def send(self, data: bytes) -> bool:
        self.sent.append(parse_message(data))
        return True

    def receive(self) -> bytes | None:
        if not self.answers or not self.sent:
            return None
        request = self.sent[-1]
        return Message(request.id, self.answers.pop(0), request.device, request.token, request.is_bus, True).encode()


@given(st.lists(payloads, max_size=12), st.integers(0, 5))
def test_a_driver_withstands_any_answers(answers: list[bytes], what: int) -> None:
    now = [0.0]

    def wait(seconds: float) -> None:
        now[0] += max(seconds, 0.1)

    bus = DriverBus(Lying(answers), wait, clock=lambda: now[0])
    driver = MsgDriver(bus, NUMBER)
    calls = (
        driver.info,
        lambda: driver.negotiate((1 << 128) - 1),
        lambda: driver.read_config(0, 60),
        lambda: driver.write_config(0, b"x"),
        bus.devices,
        lambda: driver.setup_queue(0, 16, 0x1000, 0x2000, 0x3000),
    )
    try:
        calls[what]()
    except XenvirtioError:
        pass
