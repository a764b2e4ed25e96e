"""Sessions over both carriers: ends that come late, start anew, vanish; and floods."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.virtio.transports.msg_machine import NUMBER, Links, MsgMachine, Pipe
from xenvirtio.errors import PeerProtocolError, ResourceError, SessionLostError
from xenvirtio.virtio.msg_driver import MsgDriver
from xenvirtio.virtio.msg_driver_bus import DriverBus
from xenvirtio.virtio.transports import msg_layout as layout
from xenvirtio.virtio.transports.msg_codec import Message
from xenvirtio.virtio.transports.msg_datagram import MAGIC, SESSION, DatagramLink, DmaKind
from xenvirtio.virtio.transports.msg_layout import BusMessageId
from xenvirtio.virtio.transports.msg_link import LinkState, MessageLink, draw_incarnation

KINDS = ("region", "datagram")
PING = Message(3, b"abcd", token=1, is_bus=True).encode()


@pytest.fixture(params=KINDS)
def links(request: pytest.FixtureRequest) -> Links:
    return Links(request.param)


def settle(*ends: MessageLink) -> None:
    """Let ends that do nothing else come together."""
    for _ in range(6):
        for end in ends:
            if end.state is LinkState.CHANGED:
                end.accept()


def is_open(end: MessageLink) -> bool:
    return end.state is LinkState.OPEN


@pytest.mark.parametrize("driver_first", [True, False])
def test_the_ends_meet_in_any_order(links: Links, driver_first: bool) -> None:
    makers: list[Callable[[], MessageLink]] = [links.driver, links.device]
    first, second = (make() for make in (makers if driver_first else makers[::-1]))
    first.announce()
    assert first.state is LinkState.ABSENT
    second.announce()
    first.remind()
    settle(first, second)
    assert is_open(first)
    assert is_open(second)
    assert first.send(PING)
    assert is_open(second)
    assert second.receive() == PING


def test_no_session_is_open_before_both_have_seen_each_other(links: Links) -> None:
    driver, device = links.driver(), links.device()
    device.announce()
    driver.announce()
    states = [device.state]
    device.accept()
    states.append(device.state)
    assert states == [LinkState.CHANGED, LinkState.WAITING]
    for call in (device.receive, lambda: device.send(PING)):
        with pytest.raises(SessionLostError):
            call()


@pytest.mark.parametrize("restarted", ["driver", "device"])
def test_an_end_that_starts_anew_is_noticed_and_old_messages_are_gone(links: Links, restarted: str) -> None:
    driver, device = links.driver(), links.device()
    device.announce()
    driver.announce()
    settle(driver, device)
    assert driver.send(PING)
    assert device.send(PING)
    if restarted == "driver":
        fresh, other = links.driver(), device
    else:
        fresh, other = links.device(), driver
    fresh.announce()
    while is_open(other):  # a message from before may still be taken
        assert other.receive() == PING
    with pytest.raises(SessionLostError):
        other.send(PING)
    settle(fresh, other)
    assert is_open(fresh)
    assert is_open(other)
    assert fresh.receive() is None
    assert other.receive() is None


def test_goodbye_is_heard(links: Links) -> None:
    driver, device = links.driver(), links.device()
    device.announce()
    driver.announce()
    settle(driver, device)
    driver.leave()
    assert device.state is LinkState.ABSENT
    assert driver.state is LinkState.ABSENT


def test_an_incarnation_is_never_zero_nor_the_one_before() -> None:
    numbers = iter([0, 5, 1 << 32, 6])
    assert draw_incarnation(lambda: next(numbers), other_than=5) == 6


# With a device and its driver


def test_a_driver_that_starts_anew_finds_a_reset_device(links: Links) -> None:
    machine = MsgMachine.connected(links=links)
    machine.go_live()
    stopped_before_seen: list[object] = []
    machine.queues.on_stop = lambda index: stopped_before_seen.append(fresh._link.state)
    fresh = machine.new_driver_bus()  # the old process is gone without a word
    fresh.connect(10)
    assert stopped_before_seen
    assert LinkState.OPEN not in stopped_before_seen, "memory was used again before the queues had stopped"
    assert machine.queues.running == {}
    driver = MsgDriver(fresh, NUMBER)
    assert driver.status == 0
    driver.negotiate((1 << 128) - 1)


def test_a_device_that_starts_anew_ends_what_the_driver_waits_for(links: Links) -> None:
    machine = MsgMachine.connected(links=links)
    machine.go_live()
    machine.bus.close()
    successor = MsgMachine(links=links, with_driver=False)
    with pytest.raises(SessionLostError):
        machine.driver_bus.poll()
    with pytest.raises(SessionLostError):
        machine.driver.info()
    bus = DriverBus(machine.driver_bus._link, successor.serve)
    bus.connect(10)
    assert MsgDriver(bus, NUMBER).probe() == 2


def test_nobody_there_is_said_in_time() -> None:
    now = [0.0]

    def wait(seconds: float) -> None:
        now[0] += seconds

    bus = DriverBus(Links("region").driver(), wait, clock=lambda: now[0])
    with pytest.raises(ResourceError, match="within 7 s"):
        bus.connect(7)
    assert now[0] == pytest.approx(7)


def test_a_device_that_never_answers_is_given_up(links: Links) -> None:
    driver_link, device = links.driver(), links.device()
    device.announce()
    driver_link.announce()
    settle(driver_link, device)
    now = [0.0]

    def wait(seconds: float) -> None:
        now[0] += seconds
        settle(device)

    bus = DriverBus(driver_link, wait, clock=lambda: now[0])
    bus.connect(10)
    with pytest.raises(PeerProtocolError, match="no answer"):
        bus.ping(1)


def test_devices_are_found_by_a_map_in_parts(links: Links) -> None:
    machine = MsgMachine.connected(links=links)
    for number in (0, 511, 512, 4000, 65535):
        other = MsgMachine(links=Links("datagram"))
        other.transport.number = number
        machine.bus.add(other.transport)
    assert machine.driver_bus.devices() == [0, 7, 511, 512, 4000, 65535]


def test_an_inactive_device_is_all_zeros(links: Links) -> None:
    machine = MsgMachine.connected(links=links)
    assert MsgDriver(machine.driver_bus, 8).probe() == 0


@pytest.mark.parametrize(
    "message",
    [
        Message(2, b"", 8, 1),
        Message(7, b"", 8, 1),
        Message(2, layout.GET_DEVICES.pack(1, 8), token=1, is_bus=True),
        Message(2, layout.GET_DEVICES.pack(0, 9), token=1, is_bus=True),
        Message(3, b"", token=1, is_bus=True),
        Message(0x80, bytes(16), token=1, is_bus=True),
        Message(3, bytes(4), token=1, is_bus=True, is_response=True),
    ],
)
def test_nonsense_is_dropped_and_the_session_goes_on(links: Links, message: Message) -> None:
    machine = MsgMachine.connected(links=links)
    machine.driver_bus.send_event(message)
    machine.driver_bus.ping(1)
    assert machine.bus.dropped_messages <= 1
    assert machine.bus.is_open


def test_a_driver_that_never_listens_costs_a_few_bytes(links: Links) -> None:
    machine = MsgMachine.connected(links=links)
    machine.go_live(queues=2)
    for _ in range(1000):
        machine.transport.notify_queue(0)
        machine.transport.notify_queue(1)
    assert len(machine.bus._events) == 2
    machine.serve()
    for _ in range(3):
        machine.driver_bus.poll()
        machine.serve()
    assert machine.driver_bus.used == {(NUMBER, 0), (NUMBER, 1)}
    assert not machine.bus.has_pending


def test_who_sends_requests_must_take_answers(links: Links) -> None:
    machine = MsgMachine.connected(links=links)
    link = machine.driver_bus._link
    sent = 0
    for _ in range(10):
        while link.send(PING) and sent < 1000:
            sent += 1
        machine.serve()
    assert sent < 1000, "requests were taken without end"
    assert machine.bus.has_pending
    answers = 0
    for _ in range(10):
        while link.state is LinkState.OPEN and link.receive() is not None:
            answers += 1
        machine.serve()
    assert answers == sent


def test_a_flood_does_not_keep_the_bus_from_returning() -> None:
    machine = MsgMachine.connected(links=Links("datagram"))
    machine.links.pipe.room = 1 << 20
    for _ in range(5000):
        machine.driver_bus._link.send(PING)
    calls = 1
    while machine.bus.serve():
        calls += 1
    assert calls > 50


def test_a_flood_of_announcements_closes_the_session() -> None:
    pipe = Pipe(1 << 20)
    link = DatagramLink(pipe.end(1), lambda: 5, DmaKind.WINDOW)
    link.announce()
    payload = SESSION.pack(MAGIC, 1, 9, 0, DmaKind.WINDOW, 0)
    for _ in range(300):
        pipe.end(0).send(Message(BusMessageId.EVENT_SESSION, payload, is_bus=True).encode())
    link.remind()  # whoever only speaks does not hear it
    with pytest.raises(PeerProtocolError, match="useless"):
        _ = link.state


@pytest.mark.parametrize(("version", "dma", "said"), [(2, 1, "version 2"), (1, 2, "other DMA addresses")])
def test_a_datagram_end_that_does_not_fit_is_named(version: int, dma: int, said: str) -> None:
    pipe = Pipe()
    link = DatagramLink(pipe.end(1), lambda: 5, DmaKind.WINDOW)
    link.announce()
    payload = SESSION.pack(MAGIC, version, 9, 0, dma, 0)
    pipe.end(0).send(Message(BusMessageId.EVENT_SESSION, payload, is_bus=True).encode())
    assert link.state is LinkState.ABSENT
    assert said in str(link.problem)


def test_a_broken_carrier_closes_the_session_and_a_new_one_may_follow() -> None:
    machine = MsgMachine.connected(links=Links("region"))
    machine.go_live()
    machine.links.memory.view[0x1C:0x20] = b"\xff\xff\xff\x7f"
    with pytest.raises(PeerProtocolError):
        machine.serve()
    assert machine.bus.violations == 1
    assert machine.queues.running == {}
    with pytest.raises(SessionLostError):
        machine.driver_bus.poll()
    machine.bus.announce()
    machine.driver_bus.connect(10)
    machine.go_live()
    assert list(machine.queues.running) == [0]
