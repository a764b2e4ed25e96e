"""Virtio over messages, driver side: what a guest kernel's virtio-msg transport does. Experimental.

    bus = DriverBus(link, wait)
    bus.connect(10)                       # as soon as the other end is there
    driver = MsgDriver(bus, 0)
    driver.probe(); driver.negotiate(...); driver.setup_queue(...); driver.driver_ok()

For tests and user-space frontends, in one thread. Every method may raise SessionLostError: the device's end went away
or started anew, and everything from `connect` on has to be done again.

Source: virtio-msg RFC v3 (see `transports.msg_layout`), Transport Messages.
"""

from __future__ import annotations

from dataclasses import dataclass

from xenvirtio.errors import PeerProtocolError
from xenvirtio.virtio import features as feature
from xenvirtio.virtio.msg_driver_bus import DriverBus
from xenvirtio.virtio.status import Status
from xenvirtio.virtio.transports import msg_layout as layout
from xenvirtio.virtio.transports.msg_codec import Message
from xenvirtio.virtio.transports.msg_layout import HEADER, MESSAGE_BYTES_MAX, MessageId

CONFIG_BYTES_AT_ONCE = MESSAGE_BYTES_MAX - HEADER.size - layout.CONFIG_DATA.size
RETRIES = 100
"""Attempts at a configuration that changes under the reader's hands."""


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """What GET_DEVICE_INFO says; type 0: there is no such device."""

    type: int
    vendor: int
    feature_bits: int
    config_bytes: int
    queues: int


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


