"""The driver end of a virtio-msg bus: sessions, requests and their answers, events.

For one thread. What the other end sends is bounded before it is kept, and every wait for it has an end.

Source: virtio-msg RFC v3 (see `transports.msg_layout`), Bus Messages and Message Correlation.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from xenvirtio.errors import PeerProtocolError, ResourceError
from xenvirtio.virtio.status import Status
from xenvirtio.virtio.transports import msg_layout as layout
from xenvirtio.virtio.transports.msg_codec import Message, parse_message
from xenvirtio.virtio.transports.msg_layout import BusMessageId, MessageId
from xenvirtio.virtio.transports.msg_link import LinkState, MessageLink

RESPONSE_TIMEOUT_S = 10.0
"""How long a device may take to answer. A reset waits for a write to disk; a device that is gone answers never."""

MESSAGES_AT_ONCE = 256
"""How many messages are taken in before the caller goes on: a flood never ends."""

EVENTS_MAX = 1024
"""Different events kept for the owner, who knows a handful of devices and queues."""

MAP_BITS = 512
"""Device numbers asked for at once."""

Wait = Callable[[float], None]
"""Blocks until the other end may have done something, at most that many seconds."""


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
