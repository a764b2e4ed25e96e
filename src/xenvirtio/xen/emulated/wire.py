"""Messages between a backend process and the host: JSON for the values, raw bytes for arrays, descriptors beside.

One request is answered by one reply before the next is sent, so descriptors cannot be mixed up.
"""

from __future__ import annotations

import json
import os
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

_HEAD = struct.Struct("<III")  # JSON bytes, raw bytes, descriptors
_MAX_DESCRIPTORS = 4


@dataclass(slots=True)
class Message:
    """A request (operation and arguments) or a reply (results, or `errno`)."""

    operation: str = ""
    values: dict[str, int] = field(default_factory=dict)
    raw: bytes = b""
    descriptors: Sequence[int] = ()
    owner: object = None
    """Keeps the object alive that the descriptors belong to, until they have been sent. Not sent itself."""


def send(connection: socket.socket, message: Message) -> None:
    text = json.dumps([message.operation, message.values]).encode()
    data = _HEAD.pack(len(text), len(message.raw), len(message.descriptors)) + text + message.raw
    sent = socket.send_fds(connection, [data], message.descriptors)
    if sent < len(data):
        connection.sendall(memoryview(data)[sent:])


def receive(connection: socket.socket) -> Message:
    """Wait for the next message; its descriptors are the receiver's to close.

    Raises:
        EOFError: the peer is gone.
        OSError: the connection is broken.
    """
    head, descriptors, _, _ = socket.recv_fds(connection, _HEAD.size, _MAX_DESCRIPTORS, socket.MSG_CMSG_CLOEXEC)
    try:
        head += _receive_exactly(connection, _HEAD.size - len(head))
        text_bytes, raw_bytes, _ = _HEAD.unpack(head)
        operation, values = json.loads(_receive_exactly(connection, text_bytes))
        return Message(operation, values, _receive_exactly(connection, raw_bytes), descriptors)
    except (EOFError, OSError):
        for descriptor in descriptors:
            os.close(descriptor)
        raise


def _receive_exactly(connection: socket.socket, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        chunk = connection.recv(count - len(data))
        if not chunk:
            raise EOFError
        data += chunk
    return bytes(data)
