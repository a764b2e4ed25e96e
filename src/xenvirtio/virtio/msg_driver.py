"""Virtio over messages, driver side: what a guest kernel's virtio-msg bus and transport do. Experimental.

    bus = DriverBus(link, wait, random_word)
    bus.connect(10)                       # as soon as the other end is there
    driver = MsgDriver(bus, 0)
    driver.probe(); driver.negotiate(...); driver.setup_queue(...); driver.driver_ok()

For tests and user-space frontends, in one thread. Every method may raise SessionLostError: the device's end went away
or started anew, and everything from `connect` on has to be done again. What the other end sends is bounded before it is
kept, and every wait for it has an end.

Source: virtio-msg RFC v3 (see `transports.msg_layout`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from xenvirtio.errors import PeerProtocolError, ResourceError
from xenvirtio.virtio import features as feature
from xenvirtio.virtio.status import Status
from xenvirtio.virtio.transports import msg_layout as layout
from xenvirtio.virtio.transports.msg_codec import Message, parse_message
from xenvirtio.virtio.transports.msg_layout import HEADER, MESSAGE_BYTES_MAX, BusMessageId, MessageId
from xenvirtio.virtio.transports.msg_link import LinkState, MessageLink

RESPONSE_TIMEOUT_S = 10.0
"""How long a device may take to answer. A reset waits for a write to disk; a device that is gone answers never."""

CONFIG_BYTES_AT_ONCE = MESSAGE_BYTES_MAX - HEADER.size - layout.CONFIG_DATA.size
RETRIES = 100
"""Attempts at a configuration that changes under the reader's hands."""

MESSAGES_AT_ONCE = 256
"""How many messages are taken in before the caller goes on: a flood never ends."""

EVENTS_MAX = 1024
"""Different events kept for the owner, who knows a handful of devices and queues."""

MAP_BITS = 512
"""Device numbers asked for at once."""

Wait = Callable[[float], None]
"""Blocks until the other end may have done something, at most that many seconds."""


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """What GET_DEVICE_INFO says; type 0: there is no such device."""

    type: int
    vendor: int
    feature_bits: int
    config_bytes: int
    queues: int


class DriverBus:
    """The driver's end of a bus over `link`."""

    def __init__(self, link: MessageLink, wait: Wait, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._link = link
        self._wait = wait
        self._clock = clock
        self._token = 0
        self.used: set[tuple[int, int]] = set()
        """(device, queue) pairs told by EVENT_USED since the owner last cleared them."""
        self.config_events: dict[int, Status] = {}
        """Device -> its status, told by EVENT_CONFIG since the owner last took it out."""
        self.removed: set[int] = set()

    def connect(self, timeout_s: float | None = None) -> None:
        """Begin a session, and wait until the device's end takes part; without a limit if none is given.

        Raises:
            ResourceError: it did not in time, or cannot (then the message says why).
        """
        deadline = None if timeout_s is None else self._clock() + timeout_s
        self._link.announce()
        while True:
            state = self._link.state
            if state is LinkState.CHANGED:
                self._link.accept()
                state = self._link.state
            if state is LinkState.OPEN:
                break
            left = 1.0 if deadline is None else min(deadline - self._clock(), 1.0)
            if left <= 0:
                why = self._link.problem or "is it running, and configured for this domain?"
                raise ResourceError(f"the device's end of the bus has not answered within {timeout_s:g} s: {why}")
            self._wait(left)
            self._link.remind()
        self.used.clear()
        self.config_events.clear()
        self.removed.clear()

    def request(self, number: int, payload: bytes = b"", *, device: int = 0, is_bus: bool = False) -> Message:
        """Send a request and wait for its response; events that come meanwhile are noted.

        Raises:
            PeerProtocolError: no answer in time, or none that can be.
        """
        self._token = self._token % 0xFFFF + 1
        deadline = self._clock() + RESPONSE_TIMEOUT_S
        self._send(Message(number, payload, device, self._token, is_bus), deadline)
        while True:
            message = self._receive()
            left = deadline - self._clock()
            if left <= 0 and (message is None or not message.is_response):
                raise PeerProtocolError(f"no answer to message {number:#x} within {RESPONSE_TIMEOUT_S:g} s")
            if message is None:
                self._wait(min(left, 1.0))
            elif message.is_response:
                # a response to anything else is from before a timeout, and of no use any more
                if (message.device, message.token, message.is_bus) == (device, self._token, is_bus):
                    if message.id != number:
                        raise PeerProtocolError(f"message {number:#x} was answered by {message.id:#x}")
                    return message
            else:
                self._note(message)

    def send_event(self, message: Message) -> None:
        self._send(message, self._clock() + RESPONSE_TIMEOUT_S)

    def _send(self, message: Message, deadline: float) -> None:
        data = message.encode()
        while not self._link.send(data):
            if self._clock() > deadline:
                raise PeerProtocolError("the other end takes no messages any more")
            self._wait(1.0)

    def poll(self) -> None:
        """Take in what has arrived, without waiting."""
        for _ in range(MESSAGES_AT_ONCE):
            message = self._receive()
            if message is None:
                return
            if not message.is_response:
                self._note(message)

    def wait(self, timeout_s: float) -> None:
        """Wait until something may have arrived, and take it in."""
        self._wait(timeout_s)
        self.poll()

    def _receive(self) -> Message | None:
        data = self._link.receive()
        return None if data is None else parse_message(data)

    def _note(self, message: Message) -> None:
        """Take in an event, or answer a request of the other end. What is unknown is dropped, as the draft asks."""
        if message.is_bus:
            if message.id == BusMessageId.PING:
                self._link.send(message.response(layout.PING.pack(*message.fields(layout.PING))).encode())
            elif message.id == BusMessageId.EVENT_DEVICE:
                number, state = message.fields(layout.EVENT_DEVICE)
                if state == layout.DeviceState.REMOVED and len(self.removed) < EVENTS_MAX:
                    self.removed.add(number)
                elif state == layout.DeviceState.READY:
                    self.removed.discard(number)
        elif message.id == MessageId.EVENT_USED:
            (index,) = message.fields(layout.QUEUE_INDEX)
            if len(self.used) < EVENTS_MAX:
                self.used.add((message.device, index))
        elif message.id == MessageId.EVENT_CONFIG and len(self.config_events) < EVENTS_MAX:
            self.config_events[message.device] = Status(message.fields(layout.EVENT_CONFIG)[0] & 0xFF)

    def ping(self, word: int) -> None:
        """Have the other end repeat a number.

        Raises:
            PeerProtocolError: it repeats another.
        """
        answer = self.request(BusMessageId.PING, layout.PING.pack(word), is_bus=True)
        if answer.fields(layout.PING) != (word,):
            raise PeerProtocolError("the answer to a ping is not what was asked")

    def devices(self) -> list[int]:
        """The numbers of the devices on the bus."""
        numbers: list[int] = []
        first = 0
        while True:
            answer = self.request(BusMessageId.GET_DEVICES, layout.GET_DEVICES.pack(first, MAP_BITS), is_bus=True)
            start, count, following = answer.fields(layout.DEVICES)
            bitmap = answer.payload[layout.DEVICES.size :]
            if start != first or count > 8 * len(bitmap):
                raise PeerProtocolError(f"a device map of {count} from {start}, in {len(bitmap)} bytes")
            numbers += [first + n for n in range(count) if bitmap[n // 8] >> n % 8 & 1]
            if following == 0:
                return numbers
            if following <= first or following % 8:
                raise PeerProtocolError(f"the device map after {first} goes on at {following}")
            first = following

    def close(self) -> None:
        """Leave; the device's end resets what we used."""
        self._link.leave()




class MsgDriver:
    """The driver of device `number`. Its methods are those of `virtio.driver.MmioDriver`, its errors the bus's."""

    def __init__(self, bus: DriverBus, number: int = 0) -> None:
        self._bus = bus
        self._number = number

    def info(self) -> DeviceInfo:
        answer = self._request(MessageId.GET_DEVICE_INFO)
        return DeviceInfo(*answer.fields(layout.DEVICE_INFO)[:5])

    def probe(self) -> int:
        """Return the device's type, 0 when there is none of this number."""
        return self.info().type

    def negotiate(self, wanted: int) -> int:
        """Reset the device and agree on features; return those of `wanted` it offers, VERSION_1 always included."""
        self.reset()
        self._add_status(Status.ACKNOWLEDGE | Status.DRIVER)
        accepted = self.offered_features() & (wanted | feature.VERSION_1)
        if not accepted & feature.VERSION_1:
            self._add_status(Status.FAILED)
            raise PeerProtocolError("the device does not offer VERSION_1")
        blocks = b"".join(feature.word(accepted, index).to_bytes(4, "little") for index in range(feature.WORDS))
        self._request(MessageId.SET_DRIVER_FEATURES, layout.FEATURE_BLOCKS.pack(0, feature.WORDS) + blocks)
        if not self._add_status(Status.FEATURES_OK) & Status.FEATURES_OK:
            self._add_status(Status.FAILED)
            raise PeerProtocolError(f"the device refuses the features {feature.describe(accepted)}")
        return accepted

    def offered_features(self) -> int:
        answer = self._request(MessageId.GET_DEVICE_FEATURES, layout.FEATURE_BLOCKS.pack(0, feature.WORDS))
        first, count = answer.fields(layout.FEATURE_BLOCKS)
        blocks = answer.payload[layout.FEATURE_BLOCKS.size :][: 4 * feature.WORDS]
        if first != 0 or len(blocks) < 4 * min(count, feature.WORDS):
            raise PeerProtocolError(f"{count} feature blocks from {first}, in {len(blocks)} bytes")
        return int.from_bytes(blocks, "little")

    def queue_size_max(self, index: int) -> int:
        """Largest size of queue `index`, 0 when there is none."""
        return int(self._queue(index)[1])

    def setup_queue(self, index: int, size: int, desc: int, driver: int, device: int) -> None:
        """Make a queue ready: `size` entries, its three areas at DMA addresses, their memory zeroed."""
        _, largest, current, *_ = self._queue(index)
        if largest < size:
            raise PeerProtocolError(f"queue {index} does not take {size} entries")
        if current:
            raise PeerProtocolError(f"queue {index} is in use already")
        self._request(MessageId.SET_VQUEUE, layout.QUEUE.pack(index, 0, size, 0, desc, driver, device))
        _, _, current, _, *areas = self._queue(index)
        if current != size or areas != [desc, driver, device]:
            raise PeerProtocolError(f"queue {index} was not set up as asked")

    def _queue(self, index: int) -> tuple[int, ...]:
        return self._request(MessageId.GET_VQUEUE, layout.QUEUE_INDEX.pack(index)).fields(layout.QUEUE)

    def reset_queue(self, index: int) -> None:
        """Reset one queue (RING_RESET negotiated); it may be set up anew."""
        self._request(MessageId.RESET_VQUEUE, layout.QUEUE_INDEX.pack(index))

    def driver_ok(self) -> None:
        """Set the device to work.

        Raises:
            PeerProtocolError: it cannot: it asks for a reset instead.
        """
        if self._add_status(Status.DRIVER_OK) & Status.DEVICE_NEEDS_RESET:
            raise PeerProtocolError("the device asks for a reset as soon as it is to work")

    @property
    def status(self) -> Status:
        return Status(self._request(MessageId.GET_DEVICE_STATUS).fields(layout.STATUS)[0] & 0xFF)

    def reset(self) -> None:
        """Reset the device; all queue memory is the driver's again."""
        if self._set_status(0):
            raise PeerProtocolError("the device does not reset")

    def kick(self, index: int) -> None:
        """Say that buffers were made available (NOTIFICATION_DATA not negotiated)."""
        self._bus.send_event(Message(MessageId.EVENT_AVAIL, layout.EVENT_AVAIL.pack(index, 0), self._number))

    def read_config(self, offset: int, length_bytes: int) -> bytes:
        """Read configuration space as it was at one moment."""
        for _ in range(RETRIES):
            content = b""
            generations = set()
            while len(content) < length_bytes:
                generation, part = self._read_config(offset + len(content), length_bytes - len(content))
                generations.add(generation)
                content += part
            if len(generations) <= 1:
                return content
        raise PeerProtocolError("the configuration never stays the same for one read")

    def _read_config(self, offset: int, length_bytes: int) -> tuple[int, bytes]:
        wanted = min(length_bytes, CONFIG_BYTES_AT_ONCE)
        answer = self._request(MessageId.GET_CONFIG, layout.CONFIG_RANGE.pack(offset, wanted))
        generation, start, length = answer.fields(layout.CONFIG_DATA)
        part = answer.payload[layout.CONFIG_DATA.size :][:length]
        if start != offset or not 0 < len(part) == length <= wanted:
            raise PeerProtocolError(f"{length} bytes of configuration at {start}, {wanted} at {offset} were asked for")
        return generation, part

    def write_config(self, offset: int, data: bytes) -> None:
        """Write configuration space, over whatever changes meanwhile."""
        for _ in range(RETRIES):
            generation, _ = self._read_config(offset, len(data))
            payload = layout.CONFIG_DATA.pack(generation, offset, len(data)) + data
            answer = self._request(MessageId.SET_CONFIG, payload)
            if answer.fields(layout.CONFIG_DATA)[2]:
                return
        raise PeerProtocolError(f"the device takes no configuration at {offset}")

    def _request(self, number: MessageId, payload: bytes = b"") -> Message:
        return self._bus.request(number, payload, device=self._number)

    def _add_status(self, bits: Status) -> int:
        return self._set_status(self.status | bits)

    def _set_status(self, value: int) -> int:
        answer = self._request(MessageId.SET_DEVICE_STATUS, layout.STATUS.pack(value))
        return int(answer.fields(layout.STATUS)[0])


