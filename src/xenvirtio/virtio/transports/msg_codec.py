"""Messages of virtio-msg as values: bytes in, values out."""

from __future__ import annotations

from dataclasses import dataclass
from struct import Struct
from typing import Any

from xenvirtio.errors import PeerProtocolError
from xenvirtio.virtio.transports.msg_layout import (
    BUS_OWN_EVENT_FIRST,
    BUS_OWN_FIRST,
    EVENT_FIRST,
    HEADER,
    MESSAGE_BYTES_MAX,
    TYPE_BUS,
    TYPE_RESPONSE,
)


@dataclass(frozen=True, slots=True)
class Message:
    """One message. `device` is its number on the bus, 0 in bus messages; `token` ties a response to its request."""

    id: int
    payload: bytes = b""
    device: int = 0
    token: int = 0
    is_bus: bool = False
    is_response: bool = False

    @property
    def is_event(self) -> bool:
        """Say whether it takes no response, by its id."""
        if self.is_bus and self.id >= BUS_OWN_FIRST:
            return self.id >= BUS_OWN_EVENT_FIRST
        return self.id >= EVENT_FIRST

    def encode(self) -> bytes:
        kind = (TYPE_BUS if self.is_bus else 0) | (TYPE_RESPONSE if self.is_response else 0)
        return HEADER.pack(kind, self.id, self.device, self.token, HEADER.size + len(self.payload)) + self.payload

    def response(self, payload: bytes = b"") -> Message:
        """The answer to this request."""
        return Message(self.id, payload, self.device, self.token, self.is_bus, is_response=True)

    def fields(self, layout: Struct) -> tuple[Any, ...]:
        """Unpack the fixed part of the payload; what a later draft may append is ignored.

        Raises:
            PeerProtocolError: the payload is shorter.
        """
        if len(self.payload) < layout.size:
            raise PeerProtocolError(f"message {self.id:#x} has {len(self.payload)} bytes of payload, not {layout.size}")
        return layout.unpack_from(self.payload)


def parse_message(data: bytes) -> Message:
    """Parse one message; bytes behind its end (the frame of a bus may be longer) are ignored.

    Raises:
        PeerProtocolError: no message is like that.
    """
    if len(data) < HEADER.size:
        raise PeerProtocolError(f"a message of {len(data)} bytes")
    kind, number, device, token, size = HEADER.unpack_from(data)
    if not HEADER.size <= size <= min(len(data), MESSAGE_BYTES_MAX):
        raise PeerProtocolError(f"a message that says {size} bytes, in {len(data)}")
    payload = bytes(data[HEADER.size : size])
    message = Message(number, payload, device, token, bool(kind & TYPE_BUS), bool(kind & TYPE_RESPONSE))
    if message.is_event and (message.is_response or token):
        raise PeerProtocolError(f"event {number:#x} with a token, or as a response")
    if not message.is_event and not token:
        raise PeerProtocolError(f"request {number:#x} without a token")
    return message
