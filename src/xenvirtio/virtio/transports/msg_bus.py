"""The device end of a virtio-msg bus: which device has which number, and what passes to and from them.

`serve` is called whenever something may have happened; it never waits. Between two calls events of the devices may be
sent from any thread. What the other end does not take is kept as levels, one per thing to tell, so that a driver that
never drains its ring costs a few bytes.

Source: virtio-msg RFC v3 (see `msg_layout`), Bus Messages.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from xenvirtio.errors import PeerProtocolError, SessionLostError, UsageError
from xenvirtio.virtio.bounded_log import BoundedLog
from xenvirtio.virtio.transports import msg_layout as layout
from xenvirtio.virtio.transports.msg import MsgTransport
from xenvirtio.virtio.transports.msg_codec import Message, parse_message
from xenvirtio.virtio.transports.msg_layout import HEADER, MESSAGE_BYTES_MAX, BusMessageId, MessageId
from xenvirtio.virtio.transports.msg_link import LinkState, MessageLink

log = logging.getLogger("xenvirtio.virtio.msg")

MESSAGES_PER_CALL = 64
"""A flood must not keep `serve` from returning: whoever calls it may have been asked to end."""

BITMAP_BITS_MAX = 8 * (MESSAGE_BYTES_MAX - HEADER.size - layout.DEVICES.size)


class DeviceBus:
    """The devices of one link."""

    def __init__(
        self, link: MessageLink, *, name: str = "virtio-msg bus", clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._link = link
        self._log = BoundedLog(log, name, clock)
        self._lock = threading.Lock()
        """Held around every use of the link; never while a device works, whose threads send events."""
        self._devices: dict[int, MsgTransport] = {}
        self._events: dict[tuple[int, ...], Message] = {}
        self._response: bytes | None = None
        self._is_open = False
        self._problem: str | None = None
        self.sessions = 0
        self.dropped_messages = 0
        self.violations = 0

    @property
    def is_open(self) -> bool:
        return self._is_open

    @property
    def has_pending(self) -> bool:
        """Something found no room with the other end, and waits to be sent."""
        return self._is_open and (self._response is not None or bool(self._events))

    @property
    def is_choked(self) -> bool:
        """An answer found no room: no request is taken until it has."""
        return self._is_open and self._response is not None

    def add(self, transport: MsgTransport) -> None:
        """Put a device on the bus, under its number."""
        if not 0 <= transport.number < layout.DEVICE_NUMBERS or transport.number in self._devices:
            raise UsageError(f"device number {transport.number} is not free on this bus")
        self._devices[transport.number] = transport

    def announce(self) -> None:
        with self._lock:
            self._link.announce()

    def remind(self) -> None:
        """Repeat the announcement while nobody is there."""
        with self._lock:
            if not self._is_open:
                self._link.remind()

    def send_event(self, message: Message) -> None:
        """Send an event of a device, or keep it until there is room; from any thread, never waits.

        What is kept is merged: an event is a level, and the newest one of a kind says it all.
        """
        with self._lock:
            if not self._is_open:
                return
            key: tuple[int, ...] = (message.device, message.id)
            if message.id == MessageId.EVENT_USED:
                key += message.fields(layout.QUEUE_INDEX)
            self._events[key] = message
            try:
                self._flush()
            except PeerProtocolError:
                pass  # `serve` finds the same and deals with it

    def _flush(self) -> None:
        """Send what is kept, responses first. The lock is held."""
        if self._response is not None:
            if not self._link.send(self._response):
                return
            self._response = None
        while self._events:
            key, message = next(iter(self._events.items()))
            if not self._link.send(message.encode()):
                return
            del self._events[key]

    def serve(self) -> bool:
        """Do what there is to do; return True when more may be waiting.

        Raises:
            PeerProtocolError: the other end broke a rule of the carrier; the session is over. `announce` begins anew.
        """
        try:
            return self._serve()
        except SessionLostError:
            self._end_session()
            return True
        except PeerProtocolError:
            self.violations += 1
            with self._lock:
                self._link.leave()
            self._end_session()
            raise

    def _serve(self) -> bool:
        with self._lock:
            state = self._link.state
        if self._is_open and state is not LinkState.OPEN:
            self._end_session()
        if state is LinkState.CHANGED:
            self._give_up_drivers()  # before the other end hears that it may use the memory
            with self._lock:
                self._link.accept()
                state = self._link.state
        self._report_problem()
        if state is not LinkState.OPEN:
            return False
        if not self._is_open:
            self._begin_session()
        for _ in range(MESSAGES_PER_CALL):
            with self._lock:
                self._flush()
                # a request is taken when its answer has a place: who sends requests must take answers
                data = self._link.receive() if self._response is None else None
            if data is None:
                return False
            self._dispatch(data)
        return True

    def _report_problem(self) -> None:
        if self._link.problem != self._problem:
            self._problem = self._link.problem
            if self._problem:
                self._log.warning(self._problem)

    def _begin_session(self) -> None:
        with self._lock:
            self._events.clear()
            self._response = None
            self._is_open = True
        self.sessions += 1
        self._log.info("the driver's end is there")

    def _end_session(self) -> None:
        with self._lock:
            was_open, self._is_open = self._is_open, False
            self._events.clear()
            self._response = None
        if was_open:
            self._log.info("the driver's end is gone, or has started anew")
        self._give_up_drivers()

    def _give_up_drivers(self) -> None:
        for transport in self._devices.values():
            transport.abandon_driver()

    def _dispatch(self, data: bytes) -> None:
        try:
            message = parse_message(data)
            response = self._handle_bus(message) if message.is_bus else self._handle_transport(message)
        except PeerProtocolError as error:
            self._drop(error)
            return
        if response is not None:
            with self._lock:
                self._response = response.encode()

    def _handle_transport(self, message: Message) -> Message | None:
        transport = self._devices.get(message.device)
        if transport is not None:
            return transport.handle(message)
        if message.id == MessageId.GET_DEVICE_INFO and not message.is_response:
            return message.response(bytes(layout.DEVICE_INFO.size))  # what an inactive device answers
        raise PeerProtocolError(f"message {message.id:#x} for device {message.device}, which does not exist")

    def _handle_bus(self, message: Message) -> Message | None:
        if message.is_response:
            raise PeerProtocolError(f"response {message.id:#x} to nothing that was asked")
        match message.id:
            case BusMessageId.GET_DEVICES:
                return message.response(self._device_map(*message.fields(layout.GET_DEVICES)))
            case BusMessageId.PING:
                return message.response(layout.PING.pack(*message.fields(layout.PING)))
        raise PeerProtocolError(f"unknown bus message {message.id:#x}")

    def _device_map(self, first: int, count: int) -> bytes:
        if first % 8 or count % 8:
            raise PeerProtocolError(f"a device map from {first}, of {count}: no multiples of 8")
        count = min(count, BITMAP_BITS_MAX, layout.DEVICE_NUMBERS - first)
        bitmap = bytearray(count // 8)
        following = 0
        for number in sorted(self._devices, reverse=True):
            if number >= first + count:
                following = number // 8 * 8
            elif number >= first:
                bitmap[(number - first) // 8] |= 1 << (number - first) % 8
        return layout.DEVICES.pack(first, count, following) + bytes(bitmap)

    def _drop(self, error: PeerProtocolError) -> None:
        self.dropped_messages += 1
        self._log.warning(f"a message was dropped: {error}")

    def close(self) -> None:
        """Leave the bus and close its devices."""
        try:
            with self._lock:
                self._link.leave()
        finally:
            self._end_session()
            for transport in self._devices.values():
                transport.close()
            self._devices.clear()
