"""Slots in, answers out: one page, one fake transport, event channels that only remember."""

from __future__ import annotations

import logging
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterable, Iterator

import pytest

from xenvirtio.errors import HypervisorError
from xenvirtio.ids import DomId, EventPort, RemotePort
from xenvirtio.ioreq.page import SLOT_BYTES, RequestType, SlotState
from xenvirtio.ioreq.pump import DeviceWindow, IoreqPump
from xenvirtio.memory.buffer import HostBuffer
from xenvirtio.memory.raw import load_u8, load_u32, load_u64, store_u8, store_u32, store_u64

BASE = 0x200_0000
WINDOW = 0x200
PORTS = (EventPort(11), EventPort(12), EventPort(13))
ALL_ONES = (1 << 64) - 1
NOTIFY, STATUS, ACK = 0x50, 0x60, 0x64


class Events:
    """Event channels of three vCPUs."""

    def __init__(self) -> None:
        self.eventfd = os.eventfd(0, os.EFD_NONBLOCK)
        self.pending: list[EventPort] = []
        self.log: list[tuple[str, object]] = []
        self.on_notify: Callable[[EventPort], None] = lambda port: None

    def fileno(self) -> int:
        return self.eventfd

    def bind_interdomain(self, domid: DomId, remote_port: RemotePort) -> EventPort:
        raise NotImplementedError

    def bind_unbound(self, domid: DomId) -> EventPort:
        raise NotImplementedError

    def bind_virq(self, virq: int) -> EventPort:
        raise NotImplementedError

    def bind_static(self, port: EventPort) -> EventPort:
        raise NotImplementedError

    def unbind(self, port: EventPort) -> None:
        raise NotImplementedError

    def raise_port(self, port: int) -> None:
        self.pending.append(EventPort(port))
        os.eventfd_write(self.eventfd, 1)

    def notify(self, port: EventPort) -> None:
        self.log.append(("notify", port))
        self.on_notify(port)

    def read(self) -> list[EventPort]:
        try:
            os.eventfd_read(self.eventfd)
        except BlockingIOError:
            pass
        ports, self.pending = self.pending, []
        self.log.append(("read", ports))
        return ports

    def unmask(self, ports: Iterable[EventPort]) -> None:
        self.log.append(("unmask", list(ports)))

    def close(self) -> None:
        os.close(self.eventfd)


class Transport:
    def __init__(self) -> None:
        self.log: list[tuple[object, ...]] = []
        self.answer = 0x1234

    def read(self, offset: int, size: int) -> int:
        self.log.append(("read", offset, size))
        return self.answer

    def write(self, offset: int, size: int, value: int) -> None:
        self.log.append(("write", offset, size, value))


class Broken(Transport):
    def read(self, offset: int, size: int) -> int:
        raise ValueError("a bug")

    def write(self, offset: int, size: int, value: int) -> None:
        raise ValueError("a bug")


class Bench:
    def __init__(self, events: Events | None = None, transport: Transport | None = None) -> None:
        self.page = HostBuffer(4096)
        self.status = HostBuffer(16)
        self.events = events or Events()
        self.transport = transport or Transport()
        self.invalidated = 0
        self.pump = IoreqPump(self.page.address, PORTS, self.events, self._invalidate)
        self.window = DeviceWindow(BASE, WINDOW, self.status.address, 2, self.transport)
        self.pump.set_windows([self.window])

    def _invalidate(self) -> None:
        self.invalidated += 1

    def post(
        self,
        offset: int = 0,
        *,
        value: int | None = None,
        size: int = 4,
        vcpu: int = 0,
        kind: int = RequestType.COPY,
        state: int = SlotState.READY,
        address: int | None = None,
    ) -> None:
        """Fill a slot; without `value` it is a read."""
        slot = self.page.address + SLOT_BYTES * vcpu
        store_u64(slot, BASE + offset if address is None else address)
        store_u64(slot + 8, value or 0)
        store_u32(slot + 16, 1)
        store_u32(slot + 20, size)
        store_u8(slot + 31, kind)
        store_u8(slot + 30, state | (0x20 if value is None else 0))

    def state(self, vcpu: int = 0) -> int:
        return load_u8(self.page.address + SLOT_BYTES * vcpu + 30) & 0x0F

    def data(self, vcpu: int = 0) -> int:
        return load_u64(self.page.address + SLOT_BYTES * vcpu + 8)

    def ask(self, *arguments: int, **named: int) -> int:
        """Post, deliver, and return the answer as the guest takes it."""
        self.post(*arguments, **named)
        vcpu = named.get("vcpu", 0)
        self.events.raise_port(PORTS[vcpu])
        assert self.pump.handle_events() == 1
        assert self.state(vcpu) == SlotState.RESPONSE_READY
        store_u8(self.page.address + SLOT_BYTES * vcpu + 30, 0)
        return self.data(vcpu)


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.events.close()


def test_a_read_goes_to_the_transport_and_the_answer_into_the_slot(bench: Bench) -> None:
    assert bench.ask(0x70) == 0x1234
    assert bench.transport.log == [("read", 0x70, 4)]


def test_ports_are_unmasked_before_the_slots_and_notified_after(bench: Bench) -> None:
    bench.events.on_notify = lambda port: bench.events.log.append(("state", bench.state()))
    bench.ask(0)
    assert bench.events.log == [("read", [11]), ("unmask", [11]), ("notify", 11), ("state", SlotState.RESPONSE_READY)]


def test_a_write_keeps_size_and_value(bench: Bench) -> None:
    bench.ask(0x100, value=0xAB, size=1)
    bench.ask(0x108, value=ALL_ONES, size=8)
    assert bench.transport.log == [("write", 0x100, 1, 0xAB), ("write", 0x108, 8, ALL_ONES)]


def test_several_vcpus_are_answered_by_one_wake_up(bench: Bench) -> None:
    bench.post(0x70, vcpu=0)
    bench.post(0x70, vcpu=2)
    bench.events.pending = [PORTS[2], PORTS[0]]
    assert bench.pump.handle_events() == 2
    assert [bench.state(vcpu) for vcpu in range(3)] == [3, 0, 3]
    assert bench.pump.wakeups == 1
    assert not bench.pump.is_idle()


def test_the_spurious_event_at_binding_answers_nothing(bench: Bench) -> None:
    bench.events.pending = [*PORTS, EventPort(99)]
    assert bench.pump.handle_events() == 0
    assert ("notify", 11) not in bench.events.log
    assert bench.pump.is_idle()


@pytest.mark.parametrize("state", [SlotState.NONE, SlotState.INPROCESS, SlotState.RESPONSE_READY, 7])
def test_only_ready_slots_are_taken(bench: Bench, state: int) -> None:
    bench.post(0x70, state=state)
    assert bench.pump.scan() == 0
    assert bench.state() == state
    assert bench.events.log == []


def test_adoption_takes_ready_and_inprocess_and_repeats_a_lost_notification(bench: Bench) -> None:
    bench.post(0x70, vcpu=0)
    bench.post(0x100, value=5, vcpu=1, state=SlotState.INPROCESS)
    bench.post(0x70, vcpu=2, state=SlotState.RESPONSE_READY)
    assert bench.pump.scan(True) == 2
    assert [bench.state(vcpu) for vcpu in range(3)] == [3, 3, 3]
    assert bench.transport.log == [("read", 0x70, 4), ("write", 0x100, 4, 5)]
    assert bench.events.log == [("notify", port) for port in PORTS]


def test_other_flag_bits_survive(bench: Bench) -> None:
    bench.post(0x70)
    slot = bench.page.address + 30
    store_u8(slot, load_u8(slot) | 0xD0)
    bench.pump.scan()
    assert load_u8(slot) == 0xF3


def test_invalidate_is_done_before_the_vcpu_goes_on(bench: Bench) -> None:
    seen: list[int] = []
    bench.events.on_notify = lambda port: seen.append(bench.invalidated)
    bench.ask(value=ALL_ONES, kind=RequestType.INVALIDATE)
    assert seen == [1]
    assert bench.transport.log == []


@pytest.mark.parametrize("kind", [RequestType.PIO, RequestType.PCI_CONFIG, RequestType.TIMEOFFSET, 77, 255])
def test_an_unknown_type_reads_as_ones_and_does_nothing(bench: Bench, kind: int) -> None:
    assert bench.ask(0x70, kind=kind) == ALL_ONES
    assert bench.transport.log == []


OUTSIDE = [(BASE - 4, 4), (BASE + WINDOW, 4), (BASE + WINDOW - 2, 4), (0, 4), (ALL_ONES, 1), (BASE, 0xFFFFFFFF)]


@pytest.mark.parametrize(("address", "size"), OUTSIDE)
def test_an_access_that_is_not_inside_a_window_reads_as_ones(bench: Bench, address: int, size: int) -> None:
    assert bench.ask(address=address, size=size) == ALL_ONES
    bench.ask(address=address, size=size, value=1)
    assert bench.transport.log == []


def test_a_removed_window_is_not_served(bench: Bench) -> None:
    bench.pump.set_windows([])
    assert bench.ask(0x70) == ALL_ONES


def test_the_second_of_two_windows_is_found(bench: Bench) -> None:
    other = Transport()
    other.answer = 9
    bench.pump.set_windows([bench.window, DeviceWindow(BASE + WINDOW, WINDOW, bench.status.address, 1, other)])
    assert bench.ask(WINDOW + 4) == 9
    assert other.log == [("read", 4, 4)]


def test_a_doorbell_writes_the_queues_eventfd_after_the_answer(bench: Bench) -> None:
    kick = os.eventfd(0, os.EFD_NONBLOCK)
    bench.window.kick_fds[1] = kick
    kicked_early: list[bool] = []

    def look(port: EventPort) -> None:
        try:
            os.eventfd_read(kick)
            kicked_early.append(True)
        except BlockingIOError:
            kicked_early.append(False)

    bench.events.on_notify = look
    bench.ask(NOTIFY, value=1)
    assert kicked_early == [False]
    assert os.eventfd_read(kick) == 1
    assert (bench.pump.kicks, bench.transport.log) == (1, [])
    os.close(kick)


@pytest.mark.parametrize("value", [0, 2, 0xFFFF, 0xFFFFFFFF])
def test_a_doorbell_of_a_queue_that_does_not_run_is_nothing(bench: Bench, value: int) -> None:
    bench.ask(NOTIFY, value=value)
    assert bench.pump.kicks == 0


def test_a_doorbell_is_rung_once(bench: Bench) -> None:
    kick = os.eventfd(0, os.EFD_NONBLOCK)
    bench.window.kick_fds[0] = kick
    bench.ask(NOTIFY, value=0)
    bench.ask(0x70)
    assert os.eventfd_read(kick) == 1
    os.close(kick)


def test_interrupt_status_and_acknowledge_touch_only_the_register(bench: Bench) -> None:
    store_u32(bench.status.address, 3)
    assert bench.ask(STATUS) == 3
    bench.ask(ACK, value=1)
    assert load_u32(bench.status.address) == 2
    bench.ask(ACK, value=0xFFFFFFFF)
    assert load_u32(bench.status.address) == 0
    assert bench.transport.log == []


@pytest.mark.parametrize("offset", [NOTIFY, STATUS, ACK])
def test_fast_registers_are_fast_only_in_their_width(bench: Bench, offset: int) -> None:
    bench.ask(offset, size=2)
    bench.ask(offset, size=2, value=1)
    assert bench.transport.log == [("read", offset, 2), ("write", offset, 2, 1)]


def test_a_bug_in_a_transport_does_not_leave_the_vcpu_waiting(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench(transport=Broken())
    with caplog.at_level(logging.ERROR):
        assert bench.ask(0x70) == 0
        bench.ask(0x100, value=1)
    assert [record.message for record in caplog.records] == ["register read failed", "register write failed"]
    bench.events.close()


def test_a_bug_in_invalidation_does_not_either(caplog: pytest.LogCaptureFixture) -> None:
    events, page = Events(), HostBuffer(4096)

    def fail() -> None:
        raise ValueError("a bug")

    pump = IoreqPump(page.address, PORTS, events, fail)
    store_u8(page.address + 31, RequestType.INVALIDATE)
    store_u8(page.address + 30, SlotState.READY)
    assert pump.scan() == 1
    assert "dropping cached mappings failed" in caplog.text
    events.close()


def test_a_guest_that_is_gone_costs_a_warning(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    def refuse(port: EventPort) -> None:
        raise HypervisorError("notify", 107)

    bench.events.on_notify = refuse
    bench.ask(0x70)
    assert "vCPU 0 could not be notified" in caplog.text


def test_a_read_larger_than_64_bits_is_cut() -> None:
    transport = Transport()
    transport.answer = 1 << 64 | 5
    bench = Bench(transport=transport)
    assert bench.ask(0x70) == 5
    bench.events.close()


def test_serve_ends_when_asked_and_after_what_is_pending(bench: Bench) -> None:
    control = os.eventfd(0, os.EFD_NONBLOCK)
    thread = threading.Thread(target=bench.pump.serve, args=(control,))
    thread.start()
    answered = threading.Event()
    bench.events.on_notify = lambda port: answered.set()
    bench.post(0x70)
    bench.events.raise_port(11)
    assert answered.wait(5)
    os.eventfd_write(control, 1)
    thread.join(5)
    assert not thread.is_alive()
    os.close(control)


class Node(Events):
    """Xen's event-channel node, a socket in its place: ports are read from it and written back to unmask."""

    is_evtchn_node = True

    def __init__(self) -> None:
        super().__init__()
        self.near, self.far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def fileno(self) -> int:
        return self.near.fileno()

    def read(self) -> list[EventPort]:
        raise AssertionError("the node itself is read")

    def close(self) -> None:
        super().close()
        self.near.close()
        self.far.close()


def test_xens_own_node_is_read_and_written_directly(caplog: pytest.LogCaptureFixture) -> None:
    node = Node()
    bench = Bench(events=node)
    bench.post(0x70, vcpu=0)
    bench.post(0x100, value=7, vcpu=1)
    node.far.send(struct.pack("<III", 11, 12, 55))
    assert bench.pump.handle_events() == 2
    assert struct.unpack("<III", node.far.recv(64)) == (11, 12, 55), "all are unmasked, unknown ones too"
    assert (bench.state(0), bench.data(0), bench.state(1)) == (3, 0x1234, 3)
    assert bench.transport.log == [("read", 0x70, 4), ("write", 0x100, 4, 7)]
    assert caplog.text.count("could not be notified") == 2, "a socket has no notify ioctl"
    node.close()


def test_a_node_that_says_nothing_answers_nothing() -> None:
    node = Node()
    bench = Bench(events=node)
    bench.post(0x70)
    node.far.close()
    assert bench.pump.handle_events() == 0
    assert bench.state() == SlotState.READY
    node.close()


def test_a_guest_that_never_rests_does_not_keep_serve_from_ending(bench: Bench) -> None:
    control = os.eventfd(1, os.EFD_NONBLOCK)
    bench.post(0x70)
    bench.events.raise_port(11)

    def post_again(port: EventPort) -> None:
        bench.post(0x70)
        bench.events.raise_port(port)

    bench.events.on_notify = post_again  # the next access is there before the pump looks again
    thread = threading.Thread(target=bench.pump.serve, args=(control,), daemon=True)
    thread.start()
    thread.join(5)
    stuck = thread.is_alive()
    bench.events.on_notify = lambda port: None
    thread.join(5)
    assert not stuck
    assert bench.pump.accesses >= 1
    os.close(control)
