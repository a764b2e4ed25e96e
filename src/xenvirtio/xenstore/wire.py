"""Messages of the XenStore protocol: types, header, limits, error names.

Source: xen/include/public/io/xs_wire.h; docs/misc/xenstore.txt; the server's own operations 23-26 as of Xen 4.22.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum, IntFlag

from xenvirtio.errors import PeerProtocolError, UsageError, XenStoreError

PAYLOAD_MAX = 4096
ABSOLUTE_PATH_MAX = 3072
RELATIVE_PATH_MAX = 2048

_HEADER = struct.Struct("<IIII")
HEADER_SIZE = _HEADER.size


class MessageType(IntEnum):
    """What a message asks, or (WATCH_EVENT, ERROR) tells. 20 was RESTRICT and is gone."""

    CONTROL = 0
    DIRECTORY = 1
    READ = 2
    GET_PERMS = 3
    WATCH = 4
    UNWATCH = 5
    TRANSACTION_START = 6
    TRANSACTION_END = 7
    INTRODUCE = 8
    RELEASE = 9
    GET_DOMAIN_PATH = 10
    WRITE = 11
    MKDIR = 12
    RM = 13
    SET_PERMS = 14
    WATCH_EVENT = 15
    ERROR = 16
    IS_DOMAIN_INTRODUCED = 17
    RESUME = 18
    SET_TARGET = 19
    RESET_WATCHES = 21
    DIRECTORY_PART = 22
    GET_FEATURE = 23
    SET_FEATURE = 24
    GET_QUOTA = 25
    SET_QUOTA = 26


class Feature(IntFlag):
    """Bits of `server_features` in the ring page, also of GET_FEATURE and SET_FEATURE."""

    RECONNECTION = 1
    ERROR = 2
    WATCH_DEPTH = 4
    DOMID_ANY = 8


ERROR_NAMES = (
    "EINVAL", "EACCES", "EEXIST", "EISDIR", "ENOENT", "ENOMEM", "ENOSPC", "EIO", "ENOTEMPTY", "ENOSYS",
    "EROFS", "EBUSY", "EAGAIN", "EISCONN", "E2BIG", "EPERM",
)  # fmt: skip
"""The only names an ERROR reply may carry."""


class RefusedError(XenStoreError):
    """A request that the server answers with ERROR. `name` is one of `ERROR_NAMES`."""


@dataclass(slots=True)
class Message:
    """One message in either direction. `type` may be a number that `MessageType` does not know.

    Nobody changes one. It is not frozen, since a frozen one costs four times as much to make, twice for each request.
    """

    type: int
    request_id: int
    transaction_id: int
    payload: bytes

    def encode(self) -> bytes:
        """Return header and payload, little-endian as on every architecture we serve."""
        if len(self.payload) > PAYLOAD_MAX:
            raise UsageError(f"a payload of {len(self.payload)} bytes does not fit into {PAYLOAD_MAX}")
        return _HEADER.pack(self.type, self.request_id, self.transaction_id, len(self.payload)) + self.payload


class MessageDecoder:
    """Cut a byte stream into messages."""

    def __init__(self) -> None:
        self._pending = bytearray()

    @property
    def pending_bytes(self) -> int:
        """Bytes taken in that no message has used yet."""
        return len(self._pending)

    @property
    def pending(self) -> bytes:
        """Those bytes."""
        return bytes(self._pending)

    @property
    def announced_bytes(self) -> int:
        """How long the message is that they begin, header included; 0 while they do not say."""
        if len(self._pending) < HEADER_SIZE:
            return 0
        return HEADER_SIZE + int(_HEADER.unpack_from(self._pending)[3])

    def feed(self, chunk: bytes | bytearray | memoryview) -> None:
        """Take bytes in; their boundaries do not matter."""
        self._pending += chunk

    def next_message(self) -> Message | None:
        """Return the next whole message, or None until more bytes arrive.

        Raises:
            PeerProtocolError: a header announces more than PAYLOAD_MAX bytes.
        """
        if len(self._pending) < HEADER_SIZE:
            return None
        kind, request_id, transaction_id, length = _HEADER.unpack_from(self._pending)
        if length > PAYLOAD_MAX:
            raise PeerProtocolError(f"XenStore message with a payload of {length} bytes, allowed are {PAYLOAD_MAX}")
        end = HEADER_SIZE + length
        if len(self._pending) < end:
            return None
        payload = bytes(self._pending[HEADER_SIZE:end])
        del self._pending[:end]
        return Message(kind, request_id, transaction_id, payload)


def join_strings(strings: Iterable[bytes]) -> bytes:
    """Encode strings, each followed by a NUL."""
    return b"".join([part + b"\0" for part in strings])


def split_strings(payload: bytes) -> list[bytes]:
    """Take NUL-terminated strings apart; none for an empty payload.

    Raises:
        PeerProtocolError: the last string is not terminated.
    """
    if not payload:
        return []
    if payload[-1]:
        raise PeerProtocolError("a list of strings does not end in NUL")
    return payload[:-1].split(b"\0")


def error_payload(name: str) -> bytes:
    """Encode an error name; one that the protocol does not know becomes EINVAL."""
    return (name if name in ERROR_NAMES else "EINVAL").encode() + b"\0"


def parse_error(payload: bytes) -> str:
    """Return the error name of an ERROR reply; one that the protocol does not know reads as EINVAL."""
    name = payload.rstrip(b"\0").decode("ascii", "replace")
    return name if name in ERROR_NAMES else "EINVAL"
