"""Virtio over messages (virtio-msg): one device as its driver reaches it through a bus. Experimental.

No access traps: the driver sends a request, the bus hands it to `handle` and sends back what that returns; what the
device has to say by itself (used buffers, changed configuration, a reset wanted) goes out as events.

The driver is not trusted. What has no meaning is dropped without an answer and counted, as the draft asks; what breaks
a rule of virtio ends in DEVICE_NEEDS_RESET for this device.

State lies in `DeviceRegisters` as for the other transports, but nobody takes it over: a bus that loses its session
resets its devices, and the driver begins anew.

Source: virtio-msg RFC v3 (see `msg_layout`), Transport Messages; VIRTIO 1.4, 2.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from xenvirtio.errors import GuestError, HypervisorError, PeerProtocolError, ResourceError
from xenvirtio.virtio import features as feature
from xenvirtio.virtio.device import Device, QueueHost
from xenvirtio.virtio.registers import QUEUE_DESC, QUEUE_DEVICE, QUEUE_DRIVER, QUEUE_SIZE, DeviceRegisters
from xenvirtio.virtio.status import Status
from xenvirtio.virtio.transports import msg_layout as layout
from xenvirtio.virtio.transports.lifecycle import ALL_ONES, TRANSPORT_FEATURES, VENDOR_ID, DeviceLifecycle
from xenvirtio.virtio.transports.mmio_layout import CONFIG_CHANGE, USED_BUFFER
from xenvirtio.virtio.transports.msg_codec import Message
from xenvirtio.virtio.transports.msg_layout import HEADER, MESSAGE_BYTES_MAX, MessageId

log = logging.getLogger("xenvirtio.virtio.msg")

FEATURE_BITS = 32 * feature.WORDS
FEATURE_BLOCKS_MAX = (MESSAGE_BYTES_MAX - HEADER.size - layout.FEATURE_BLOCKS.size) // 4
CONFIG_BYTES_MAX = MESSAGE_BYTES_MAX - HEADER.size - layout.CONFIG_DATA.size
"""What one answer has room for; an answer says how much of what was asked for it holds."""


class MsgTransport(DeviceLifecycle):
    """One `device` behind messages. `registers` is a zeroed page; `number` is the device's on its bus.

    `send` takes the device's events, from any thread, and never waits. `name` is for the log.
    """

    def __init__(
        self,
        device: Device,
        registers: DeviceRegisters,
        queues: QueueHost,
        send: Callable[[Message], None],
        *,
        number: int = 0,
        transport_features: int = TRANSPORT_FEATURES,
        name: str = "virtio-msg",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(
            device, registers, queues, transport_features=transport_features, name=name, log=log, clock=clock
        )
        self.number = number
        self._send = send
        self._has_undefined_features = False
        self.rejected_messages = 0
        self._requests: dict[int, Callable[[Message], bytes | None]] = {
            MessageId.GET_DEVICE_INFO: self._get_device_info,
            MessageId.GET_DEVICE_FEATURES: self._get_features,
            MessageId.SET_DRIVER_FEATURES: self._set_features,
            MessageId.GET_CONFIG: self._get_config,
            MessageId.SET_CONFIG: self._set_config,
            MessageId.GET_DEVICE_STATUS: self._get_status,
            MessageId.SET_DEVICE_STATUS: self._set_status,
            MessageId.GET_VQUEUE: self._get_queue,
            MessageId.SET_VQUEUE: self._set_queue,
            MessageId.RESET_VQUEUE: self._reset_queue,
            MessageId.GET_SHM: self._get_shared_memory,
            MessageId.EVENT_AVAIL: self._available,
        }

    def handle(self, message: Message) -> Message | None:
        """Execute what the driver sent; return the response, or None where there is none.

        What a request asked to stop has stopped and is unmapped when this returns.
        """
        execute = None if message.is_response else self._requests.get(message.id)
        if execute is None:
            self._reject()
            return None
        try:
            payload = execute(message)
        except PeerProtocolError:
            self._reject()
            return None
        return None if payload is None else message.response(payload)

    def notify_queue(self, index: int) -> None:
        """Tell the driver that queue `index` has used buffers; callable from any thread."""
        self._send(Message(MessageId.EVENT_USED, layout.QUEUE_INDEX.pack(index), self.number))

    def abandon_driver(self) -> None:
        """The driver is gone without a word: whatever it set up is given up, as by a reset."""
        self._set_status_word(0)

    def _reject(self) -> None:
        self.rejected_messages += 1

    def _deliver(self) -> None:
        events = self._registers.acknowledge(ALL_ONES)
        if events & CONFIG_CHANGE:
            registers = self._registers
            payload = layout.EVENT_CONFIG.pack(registers.status, registers.config_generation, 0, 0)
            self._send(Message(MessageId.EVENT_CONFIG, payload, self.number))
        if events & USED_BUFFER:
            for index in range(len(self._queue_sizes)):
                if self._registers.queues[index].ready:
                    self.notify_queue(index)

    # Requests: each returns the payload of its response

    def _get_device_info(self, message: Message) -> bytes:
        device = self._device
        queues = len(self._queue_sizes)
        return layout.DEVICE_INFO.pack(device.device_type, VENDOR_ID, FEATURE_BITS, device.config_bytes, queues, 0, 0)

    def _get_features(self, message: Message) -> bytes:
        first, count = message.fields(layout.FEATURE_BLOCKS)
        count = min(count, FEATURE_BLOCKS_MAX)
        blocks = (feature.word(self.offered_features, first + n).to_bytes(4, "little") for n in range(count))
        return layout.FEATURE_BLOCKS.pack(first, count) + b"".join(blocks)

    def _set_features(self, message: Message) -> bytes:
        first, count = message.fields(layout.FEATURE_BLOCKS)
        data = message.payload[layout.FEATURE_BLOCKS.size :]
        if len(data) < 4 * count:
            raise PeerProtocolError(f"{count} feature blocks in {len(data)} bytes")
        if self._registers.status & Status.FEATURES_OK:
            self._reject()  # settled; the draft has no way to say so but the status
            return b""
        for n in range(count):
            self._set_feature_block(first + n, int.from_bytes(data[4 * n : 4 * n + 4], "little"))
        return b""

    def _set_feature_block(self, index: int, value: int) -> None:
        if index < feature.WORDS:
            self._registers.store_driver_features(index, value)
        elif value:
            self._has_undefined_features = True

    def _unacceptable_features(self) -> str | None:
        if self._has_undefined_features:
            return f"bits from {FEATURE_BITS} on, which virtio does not define"
        return super()._unacceptable_features()

    def _get_status(self, message: Message) -> bytes:
        return layout.STATUS.pack(self._registers.status)

    def _set_status(self, message: Message) -> bytes:
        (value,) = message.fields(layout.STATUS)
        self._set_status_word(value)
        return layout.STATUS.pack(self._registers.status)

    def _set_status_word(self, value: int) -> None:
        try:
            if value:
                self._add_status(value)
            else:
                self._reset()
                self._has_undefined_features = False
        except (GuestError, HypervisorError, ResourceError) as error:
            self.fail(error)

    def _get_config(self, message: Message) -> bytes:
        offset, length = message.fields(layout.CONFIG_RANGE)
        length = min(length, CONFIG_BYTES_MAX)
        content = self._config_content()
        data = content[offset : offset + length].ljust(length, b"\0")
        return layout.CONFIG_DATA.pack(self._registers.config_generation, offset, length) + data

    def _set_config(self, message: Message) -> bytes:
        """Take a write that was made with knowledge of the newest state; answer with what holds now."""
        generation, offset, length = message.fields(layout.CONFIG_DATA)
        data = message.payload[layout.CONFIG_DATA.size :][:length]
        if len(data) < length:
            raise PeerProtocolError(f"{length} bytes of configuration in {len(data)}")
        self._config_content()
        in_range = length and offset + length <= self._device.config_bytes
        known = generation == self._registers.config_generation
        if not (in_range and known and self._registers.status & Status.FEATURES_OK):
            self._reject()
            return layout.CONFIG_DATA.pack(self._registers.config_generation, offset, 0)
        self._store_config(offset, data)
        content = self._config_content()
        head = layout.CONFIG_DATA.pack(self._registers.config_generation, offset, length)
        return head + content[offset : offset + length]

    def _get_queue(self, message: Message) -> bytes:
        (index,) = message.fields(layout.QUEUE_INDEX)
        if index >= len(self._queue_sizes):
            return layout.QUEUE.pack(index, 0, 0, 0, 0, 0, 0)
        queue = self._registers.queues[index]
        largest = self._queue_sizes[index]
        return layout.QUEUE.pack(index, largest, queue.size, 0, queue.desc, queue.driver, queue.device)

    def _set_queue(self, message: Message) -> bytes:
        index, _, size, _, desc, driver, device = message.fields(layout.QUEUE)
        if index >= len(self._queue_sizes) or self._registers.queues[index].ready:
            self._reject()
            return b""
        queue = self._registers.queues[index]
        queue.store_word(QUEUE_SIZE, size)
        for offset, address in ((QUEUE_DESC, desc), (QUEUE_DRIVER, driver), (QUEUE_DEVICE, device)):
            queue.store_word(offset, address & ALL_ONES)
            queue.store_word(offset + 4, address >> 32)
        try:
            self._set_ready(index)
        except (GuestError, HypervisorError, ResourceError) as error:
            self.fail(error)
        return b""

    def _reset_queue(self, message: Message) -> bytes:
        (index,) = message.fields(layout.QUEUE_INDEX)
        if index >= len(self._queue_sizes) or not self._negotiated(feature.RING_RESET):
            self._reject()
            return b""
        self._queues.stop_queue(index)
        self._registers.queues[index].clear()
        return b""

    def _get_shared_memory(self, message: Message) -> bytes:
        (index,) = message.fields(layout.QUEUE_INDEX)
        return layout.SHARED_MEMORY.pack(index, 0, 0)

    def _available(self, message: Message) -> None:
        index, _ = message.fields(layout.EVENT_AVAIL)
        if not self._kick(index):
            self._reject()
