"""What the registry over Argo and its frontends say to each other. Bytes in, values out.

The kind of an Argo message says what it is. Every request begins with a number that comes back in its answer, and every
answer with the registry's state: which life of it this is (a random number) and how often something has changed in it.
Texts end with NUL; nothing else is in a message.

    REGISTER  number, record              DONE     number, state
    WITHDRAW  number, name                REFUSED  number, state, reason
    FIND      number, type, domid, name   RECORDS  number, state, more (1: ask again from the last), records with domid
    HELLO     number                      DONE     and the sender is told of changes from then on
                                          CHANGED  0, state; unasked

    record: name, type, key, value, key, value, ...

All requests can be repeated: an answer that was lost is asked for again.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum

from xenvirtio.errors import ConfigurationError, PeerProtocolError
from xenvirtio.ids import ArgoPort, DomId
from xenvirtio.metadata.directory import FIELDS_MAX, DeviceRecord, check_record

REGISTRY_PORT = ArgoPort(0x58560001)
"""Where a registry listens: a convention of ours. "XV" and a number."""

PULSE_PORT = ArgoPort(0x58560002)
CLIENT_PORTS = 0x58570000
"""Where frontends receive, the low bits being those of the process id."""

RECORDS_BYTES = 32 << 10
"""About how long an answer with records becomes at most: it fits with others into the ring of a frontend."""


class Kind(IntEnum):
    REGISTER = 0x5801
    WITHDRAW = 0x5802
    FIND = 0x5803
    HELLO = 0x5804
    DONE = 0x5811
    REFUSED = 0x5812
    RECORDS = 0x5813
    CHANGED = 0x5814


@dataclass(frozen=True, slots=True)
class State:
    """Equal states, equal records."""

    life: int
    changes: int


@dataclass(frozen=True, slots=True)
class Cursor:
    """Records after this one, in the order of domid and name."""

    domid: int = -1
    name: str = ""


_NUMBER = struct.Struct("<I")
_ANSWER = struct.Struct("<IQQ")
_MORE = struct.Struct("<B")
_DOMID = struct.Struct("<i")


# -- requests


def encode_register(number: int, name: str, type: str, fields: Mapping[str, str]) -> bytes:
    return _NUMBER.pack(number) + _texts(_flat(name, type, fields))


def encode_withdraw(number: int, name: str) -> bytes:
    return _NUMBER.pack(number) + _texts([name])


def encode_find(number: int, type: str, after: Cursor) -> bytes:
    return _NUMBER.pack(number) + _DOMID.pack(after.domid) + _texts([type, after.name])


def encode_hello(number: int) -> bytes:
    return _NUMBER.pack(number)


def parse_number(data: bytes) -> tuple[int, bytes]:
    """Cut a request's number off."""
    if len(data) < _NUMBER.size:
        raise PeerProtocolError(f"a request of {len(data)} bytes")
    return _NUMBER.unpack_from(data)[0], data[_NUMBER.size :]


def parse_record(data: bytes, domid: DomId) -> DeviceRecord:
    """Parse what follows a REGISTER's number; the sender's domid is Xen's word, not the message's.

    Raises:
        PeerProtocolError: no record, or one beyond the bounds.
    """
    return _record(_split(data), domid)


def parse_name(data: bytes) -> str:
    texts = _split(data)
    if len(texts) != 1:
        raise PeerProtocolError(f"{len(texts)} texts where one name should be")
    return texts[0]


def parse_find(data: bytes) -> tuple[str, Cursor]:
    if len(data) < _DOMID.size:
        raise PeerProtocolError(f"a FIND of {len(data)} bytes")
    texts = _split(data[_DOMID.size :])
    if len(texts) != 2:
        raise PeerProtocolError(f"a FIND with {len(texts)} texts")
    return texts[0], Cursor(_DOMID.unpack_from(data)[0], texts[1])


# -- answers


def encode_answer(number: int, state: State, rest: bytes = b"") -> bytes:
    return _ANSWER.pack(number, state.life, state.changes) + rest


def encode_reason(reason: str) -> bytes:
    return _texts([reason.replace("\0", " ")])


def encode_records(records: list[DeviceRecord]) -> bytes:
    """Encode as many as fit, at least one; what is left is to be asked for."""
    body, count = b"", 0
    for record in records:
        whole = _texts([str(record.domid), *_flat(record.name, record.type, record.fields)])
        entry = _NUMBER.pack(len(whole)) + whole
        if count and len(body) + len(entry) > RECORDS_BYTES:
            break
        body += entry
        count += 1
    return _MORE.pack(count < len(records)) + body


def parse_answer(data: bytes) -> tuple[int, State, bytes]:
    if len(data) < _ANSWER.size:
        raise PeerProtocolError(f"an answer of {len(data)} bytes")
    number, life, changes = _ANSWER.unpack_from(data)
    return number, State(life, changes), data[_ANSWER.size :]


def parse_records(data: bytes) -> tuple[bool, list[DeviceRecord]]:
    """Return whether there are more, and the records.

    Raises:
        PeerProtocolError: not what `encode_records` makes.
    """
    if not data:
        raise PeerProtocolError("an empty list of records")
    records, at = [], _MORE.size
    while at < len(data):
        length, body = parse_number(data[at : at + _NUMBER.size])[0], at + _NUMBER.size
        texts = _split(data[body : body + length])
        if not texts[0].isascii() or not texts[0].isdigit() or len(texts[0]) > 5:
            raise PeerProtocolError(f"a record of domain {texts[0]!r}")
        records.append(_record(texts[1:], DomId(int(texts[0]))))
        at = body + length
    return bool(data[0]), records


# -- texts


def _flat(name: str, type: str, fields: Mapping[str, str]) -> list[str]:
    return [name, type, *(text for item in fields.items() for text in item)]


def _texts(texts: list[str]) -> bytes:
    return b"".join(text.encode() + b"\0" for text in texts)


def _split(data: bytes) -> list[str]:
    """Return at least one text."""
    if not data.endswith(b"\0"):
        raise PeerProtocolError("a text without its NUL")
    parts = data[:-1].split(b"\0", 2 * FIELDS_MAX + 4)
    try:
        return [part.decode() for part in parts]
    except UnicodeDecodeError as error:
        raise PeerProtocolError(f"a text that is no UTF-8: {error.reason}") from error


def _record(texts: list[str], domid: DomId) -> DeviceRecord:
    if len(texts) < 2 or len(texts) % 2:
        raise PeerProtocolError(f"a record of {len(texts)} texts")
    name, type = texts[:2]
    fields = dict(zip(texts[2::2], texts[3::2], strict=True))
    if len(fields) != len(texts) // 2 - 1:
        raise PeerProtocolError(f"a record of {len(texts)} texts with {len(fields)} different keys")
    try:
        check_record(name, type, fields)
    except ConfigurationError as error:
        raise PeerProtocolError(str(error)) from error
    return DeviceRecord(name, type, domid, fields)
