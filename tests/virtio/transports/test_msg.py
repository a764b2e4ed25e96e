"""The rules of virtio that hold over messages as over registers, and those of the messages themselves."""

from __future__ import annotations

import threading

import pytest

from tests.virtio.fakes import CONFIG, FakeDevice, FakeQueues
from tests.virtio.transports.msg_machine import NUMBER, MsgMachine
from xenvirtio.errors import GuestError, HypervisorError, PeerProtocolError, UsageError
from xenvirtio.virtio import features
from xenvirtio.virtio.status import Status
from xenvirtio.virtio.transports import msg_layout as layout
from xenvirtio.virtio.transports.lifecycle import SUPPORTED_FEATURES, TRANSPORT_FEATURES
from xenvirtio.virtio.transports.msg_codec import Message
from xenvirtio.virtio.transports.msg_layout import MessageId

LIVE = Status.ACKNOWLEDGE | Status.DRIVER | Status.FEATURES_OK | Status.DRIVER_OK
ALL = (1 << 128) - 1


def live_machine(wanted: int = ALL) -> MsgMachine:
    machine = MsgMachine.connected()
    machine.go_live(wanted)
    return machine


# Messages


def test_a_device_says_what_it_is() -> None:
    info = MsgMachine.connected().driver.info()
    assert (info.type, info.vendor, info.feature_bits) == (2, 0x4E4558, 128)
    assert (info.config_bytes, info.queues) == (len(CONFIG), 2)


@pytest.mark.parametrize("number", [0, 1, 0x0D, 0x3F, 0x40, 0x42, 0x7F, 0x80, 0xFF])
def test_what_has_no_meaning_gets_no_answer(number: int) -> None:
    machine = MsgMachine.connected()
    assert machine.request(number, bytes(64)) is None
    assert machine.transport.rejected_messages == 1
    assert machine.registers.status == machine.registers.driver_features == 0


@pytest.mark.parametrize("number", [3, 4, 5, 6, 8, 9, 0xA, 0xB, 0xC, 0x41])
def test_a_payload_that_is_too_short_gets_no_answer(number: int) -> None:
    machine = MsgMachine.connected()
    assert machine.request(number, b"abc") is None
    assert machine.transport.rejected_messages == 1


def test_a_response_is_nothing_that_a_device_takes() -> None:
    machine = MsgMachine.connected()
    message = Message(MessageId.SET_DEVICE_STATUS, layout.STATUS.pack(1), NUMBER, 1, is_response=True)
    assert machine.transport.handle(message) is None
    assert machine.registers.status == 0


def test_no_shared_memory_region_exists() -> None:
    answer = MsgMachine.connected().request(MessageId.GET_SHM, layout.QUEUE_INDEX.pack(9))
    assert answer is not None
    assert answer.fields(layout.SHARED_MEMORY) == (9, 0, 0)


# Features and status


@pytest.mark.parametrize("bit", sorted(set(features.NAMES) - set(features.bits(SUPPORTED_FEATURES))))
def test_what_cannot_be_served_is_not_offered(bit: int) -> None:
    with pytest.raises(UsageError, match=features.NAMES[bit]):
        MsgMachine(transport_features=TRANSPORT_FEATURES | 1 << bit)


def test_features_are_what_device_and_transport_offer() -> None:
    machine = MsgMachine.connected(FakeDevice(features=1))
    assert machine.driver.offered_features() == 1 | TRANSPORT_FEATURES
    assert machine.driver.negotiate(ALL) == 1 | TRANSPORT_FEATURES
    assert machine.device.negotiated == 1 | TRANSPORT_FEATURES


def test_feature_blocks_beyond_the_last_read_zero_and_must_stay_so() -> None:
    machine = MsgMachine.connected()
    answer = machine.request(MessageId.GET_DEVICE_FEATURES, layout.FEATURE_BLOCKS.pack(3, 3))
    assert answer is not None
    assert answer.fields(layout.FEATURE_BLOCKS) == (3, 3)
    assert answer.payload[12:] == bytes(8)
    machine.request(MessageId.SET_DRIVER_FEATURES, layout.FEATURE_BLOCKS.pack(1, 1) + (1).to_bytes(4, "little"))
    machine.request(MessageId.SET_DRIVER_FEATURES, layout.FEATURE_BLOCKS.pack(4, 1) + (1).to_bytes(4, "little"))
    machine.request(MessageId.SET_DEVICE_STATUS, layout.STATUS.pack(Status.FEATURES_OK))
    assert machine.registers.status == 0
    machine.driver.negotiate(ALL)  # a reset forgives it


def test_an_answer_holds_what_fits() -> None:
    machine = MsgMachine.connected()
    answer = machine.request(MessageId.GET_DEVICE_FEATURES, layout.FEATURE_BLOCKS.pack(0, 1 << 31))
    assert answer is not None
    assert len(answer.encode()) == 256
    answer = machine.request(MessageId.GET_CONFIG, layout.CONFIG_RANGE.pack(0, 1 << 31))
    assert answer is not None
    assert len(answer.encode()) == 256


def test_features_are_fixed_by_features_ok() -> None:
    machine = MsgMachine.connected()
    taken = machine.driver.negotiate(ALL)
    machine.request(MessageId.SET_DRIVER_FEATURES, layout.FEATURE_BLOCKS.pack(0, 1) + bytes(4))
    assert machine.registers.driver_features == taken


def test_refused_features_are_told_by_the_status(caplog: pytest.LogCaptureFixture) -> None:
    machine = MsgMachine.connected()
    blocks = (features.SR_IOV | features.VERSION_1 | 1 << 60).to_bytes(16, "little")
    machine.request(MessageId.SET_DRIVER_FEATURES, layout.FEATURE_BLOCKS.pack(0, 4) + blocks)
    answer = machine.request(MessageId.SET_DEVICE_STATUS, layout.STATUS.pack(Status.FEATURES_OK))
    assert answer is not None
    assert answer.fields(layout.STATUS) == (0,)
    assert "SR_IOV" in caplog.text


def test_missing_bits_in_a_status_write_clear_nothing() -> None:
    machine = live_machine()
    machine.request(MessageId.SET_DEVICE_STATUS, layout.STATUS.pack(Status.FAILED))
    assert machine.driver.status == LIVE | Status.FAILED


def test_driver_ok_without_features_ok_asks_for_a_reset() -> None:
    machine = MsgMachine.connected()
    with pytest.raises(PeerProtocolError, match="asks for a reset"):
        machine.driver.driver_ok()
    assert machine.driver.status == Status.DEVICE_NEEDS_RESET


def test_going_live_starts_the_queues_that_are_ready() -> None:
    machine = MsgMachine.connected()
    machine.driver.negotiate(ALL)
    configuration = machine.setup_queue(1)
    assert machine.queues.running == {}
    machine.driver.driver_ok()
    assert machine.queues.running == {1: configuration}


def test_a_reset_stops_queues_before_the_device_and_then_forgets() -> None:
    machine = live_machine()
    machine.device.log.clear()
    seen: list[tuple[int, list[tuple[object, ...]]]] = []
    machine.queues.on_stop = lambda index: seen.append((machine.registers.status, list(machine.device.log)))
    machine.driver.reset()
    assert seen
    assert all(status == LIVE and ("reset",) not in log for status, log in seen)
    assert machine.device.log[-1] == ("reset",)
    assert machine.queues.running == {}
    assert machine.driver.status == 0
    assert machine.driver.queue_size_max(0) == 256


# Queues


def test_a_queue_that_does_not_exist_takes_nothing() -> None:
    machine = live_machine()
    assert machine.driver.queue_size_max(2) == 0
    machine.request(MessageId.SET_VQUEUE, layout.QUEUE.pack(2, 0, 16, 0, 0x1000, 0x2000, 0x3000))
    machine.request(MessageId.RESET_VQUEUE, layout.QUEUE_INDEX.pack(2))
    assert machine.transport.rejected_messages == 2
    assert list(machine.queues.running) == [0]


def test_a_ready_queue_cannot_be_configured() -> None:
    machine = live_machine()
    before = machine.queues.running[0]
    machine.request(MessageId.SET_VQUEUE, layout.QUEUE.pack(0, 0, 8, 0, 0x7000, 0x8000, 0x9000))
    assert machine.queues.running[0] == before
    with pytest.raises(PeerProtocolError, match="in use already"):
        machine.setup_queue(0)


@pytest.mark.parametrize("size", [0, 3, 24, 512, 1 << 31])
def test_an_impossible_size_refuses_the_queue(size: int) -> None:
    machine = MsgMachine.connected()
    machine.driver.negotiate(ALL)
    machine.request(MessageId.SET_VQUEUE, layout.QUEUE.pack(0, 0, size, 0, 0x1000, 0x2000, 0x3000))
    assert machine.driver.status & Status.DEVICE_NEEDS_RESET
    assert machine.queues.running == {}


@pytest.mark.parametrize("areas", [(8, 0, 0), (0, 1, 0), (0, 0, 2)])
def test_a_misaligned_area_refuses_the_queue(areas: tuple[int, int, int]) -> None:
    machine = MsgMachine.connected()
    machine.driver.negotiate(ALL)
    machine.request(MessageId.SET_VQUEUE, layout.QUEUE.pack(0, 0, 16, 0, *areas))
    assert machine.driver.status & Status.DEVICE_NEEDS_RESET


def test_a_queue_made_ready_later_starts_at_once() -> None:
    machine = live_machine()
    machine.setup_queue(1)
    assert sorted(machine.queues.running) == [0, 1]


def test_a_queue_has_stopped_when_the_answer_comes() -> None:
    machine = live_machine()
    machine.driver.reset_queue(0)
    assert machine.queues.log[-1] == ("stop", 0)
    machine.setup_queue(0, size=8)
    assert machine.queues.running[0].size == 8


def test_queue_reset_needs_its_feature() -> None:
    machine = live_machine(ALL ^ features.RING_RESET)
    machine.driver.reset_queue(0)
    assert list(machine.queues.running) == [0]


@pytest.mark.parametrize("error", [GuestError("no"), HypervisorError("map", 22)])
def test_rings_that_cannot_be_mapped_cost_only_this_device(error: GuestError | HypervisorError) -> None:
    machine = MsgMachine.connected()
    machine.driver.negotiate(ALL)
    machine.setup_queue(0)
    machine.queues.refuse = error
    with pytest.raises(PeerProtocolError, match="asks for a reset"):
        machine.driver.driver_ok()
    assert machine.transport.failures == 1
    machine.go_live()
    assert list(machine.queues.running) == [0]


def test_kicks_reach_running_queues_only() -> None:
    machine = live_machine()
    for index in (0, 1, 2, 0xFFFFFFFF):
        machine.driver.kick(index)
    machine.serve()
    assert [entry for entry in machine.queues.log if entry[0] == "kick"] == [("kick", 0)]


# Events


def test_used_buffers_name_their_queue() -> None:
    machine = live_machine()
    machine.transport.notify_queue(0)
    assert machine.events().used == {(NUMBER, 0)}


def test_a_failure_is_told_once_and_ends_all_kicks(caplog: pytest.LogCaptureFixture) -> None:
    machine = live_machine()
    machine.transport.fail(GuestError("a descriptor loops", queue_index=0))
    machine.transport.fail(GuestError("again"))
    assert machine.events().config_events == {NUMBER: LIVE | Status.DEVICE_NEEDS_RESET}
    assert machine.transport.failures == 1
    assert "a descriptor loops" in caplog.text
    machine.driver.kick(0)
    machine.serve()
    assert ("kick", 0) not in machine.queues.log
    machine.go_live()
    assert machine.driver.status == LIVE


def test_a_queue_can_report_from_its_own_thread_while_it_is_stopped() -> None:
    machine = live_machine()

    def report(index: int) -> None:
        thread = threading.Thread(target=machine.transport.notify_queue, args=(index,))
        thread.start()
        thread.join(5)
        assert not thread.is_alive()

    machine.queues.on_stop = report
    machine.driver.reset()


def test_a_change_reaches_a_live_driver_with_its_generation() -> None:
    machine = live_machine()
    before = machine.driver._read_config(0, 8)[0]
    machine.device.change_config(b"\x77")
    assert machine.events().config_events == {NUMBER: LIVE}
    after, content = machine.driver._read_config(0, 8)
    assert after != before
    assert content[0] == 0x77


def test_a_change_during_initialisation_is_delivered_at_driver_ok() -> None:
    machine = MsgMachine.connected()
    machine.driver.negotiate(ALL)
    machine.device.change_config(b"\x77")
    assert machine.events().config_events == {}
    machine.driver.driver_ok()
    assert machine.events().config_events == {NUMBER: LIVE}


def test_a_change_before_any_driver_concerns_nobody() -> None:
    machine = MsgMachine.connected()
    machine.device.change_config(b"\x77")
    machine.go_live()
    assert machine.events().config_events == {}


# Configuration space


@pytest.mark.parametrize(("offset", "length"), [(0, 1), (3, 2), (8, 8), (20, 8), (24, 4), (0, 24), (1 << 20, 4)])
def test_configuration_reads_zeros_past_its_end(offset: int, length: int) -> None:
    content = MsgMachine.connected().driver.read_config(offset, length)
    assert content == CONFIG[offset : offset + length].ljust(length, b"\0")


def test_a_configuration_longer_than_a_message_is_read_in_parts() -> None:
    device = FakeDevice()
    device.config = bytearray(n % 251 for n in range(600))
    machine = MsgMachine.connected(device)
    assert machine.driver.read_config(0, 600) == bytes(device.config)


def test_a_configuration_that_changes_between_two_parts_is_read_again() -> None:
    device = FakeDevice()
    device.config = bytearray(600)
    machine = MsgMachine.connected(device)
    read = device.read_config
    calls = 0

    def changing(offset: int, length_bytes: int) -> bytes:
        nonlocal calls
        calls += 1
        if calls == 2:
            device.config[:] = bytes([1]) * 600
        return read(offset, length_bytes)

    device.read_config = changing  # type: ignore[method-assign]
    assert machine.driver.read_config(0, 600) == bytes([1]) * 600


def test_a_write_takes_effect_and_shows_what_holds_now() -> None:
    machine = live_machine()
    machine.driver.write_config(4, b"\x0a\x0b\x0c\x0d\x0e\x0f")
    assert machine.device.log[-2:] == [("write_config", 4, b"\x0a\x0b\x0c\x0d"), ("write_config", 8, b"\x0e\x0f")]
    assert machine.driver.read_config(4, 6) == b"\x0a\x0b\x0c\x0d\x0e\x0f"


def test_a_write_with_an_old_generation_is_rejected() -> None:
    machine = live_machine()
    generation = machine.driver._read_config(0, 4)[0]
    machine.device.change_config(b"\x55")
    payload = layout.CONFIG_DATA.pack(generation, 0, 1) + b"\x66"
    answer = machine.request(MessageId.SET_CONFIG, payload)
    assert answer is not None
    new, offset, length = answer.fields(layout.CONFIG_DATA)
    assert (new != generation, offset, length) == (True, 0, 0)
    assert machine.device.config[0] == 0x55


@pytest.mark.parametrize(("offset", "data"), [(24, b"x"), (23, b"xx"), (0, b""), (1 << 31, b"x")])
def test_a_write_past_the_end_is_rejected(offset: int, data: bytes) -> None:
    machine = live_machine()
    generation = machine.driver._read_config(0, 4)[0]
    answer = machine.request(MessageId.SET_CONFIG, layout.CONFIG_DATA.pack(generation, offset, len(data)) + data)
    assert answer is not None
    assert answer.fields(layout.CONFIG_DATA)[2] == 0
    assert bytes(machine.device.config) == CONFIG


def test_a_write_before_features_ok_is_rejected() -> None:
    machine = MsgMachine.connected()
    with pytest.raises(PeerProtocolError, match="takes no configuration"):
        machine.driver.write_config(0, b"x")
    assert bytes(machine.device.config) == CONFIG


# The end


def test_closing_stops_the_queues_and_closes_the_device() -> None:
    machine = live_machine()
    machine.bus.close()
    assert machine.queues.running == {}
    assert machine.device.log[-1] == ("close",)


def test_refusing_queue_hosts_are_asked_in_order() -> None:
    queues = FakeQueues()
    machine = MsgMachine.connected(None, queues)
    machine.go_live(queues=2)
    assert [entry[:2] for entry in queues.log if entry[0] == "start"] == [("start", 0), ("start", 1)]
