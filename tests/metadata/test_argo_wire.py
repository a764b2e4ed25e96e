from __future__ import annotations

import pytest

from xenvirtio.errors import PeerProtocolError
from xenvirtio.ids import DomId
from xenvirtio.metadata import argo_wire as wire
from xenvirtio.metadata.argo_wire import Cursor, State
from xenvirtio.metadata.directory import DeviceRecord

RECORD = DeviceRecord("root", "block", DomId(3), {"base": "0x2000000", "irq": "33"})


def test_requests_both_ways() -> None:
    number, rest = wire.parse_number(wire.encode_register(7, RECORD.name, RECORD.type, RECORD.fields))
    assert (number, wire.parse_record(rest, DomId(3))) == (7, RECORD)
    number, rest = wire.parse_number(wire.encode_withdraw(8, "root"))
    assert (number, wire.parse_name(rest)) == (8, "root")
    number, rest = wire.parse_number(wire.encode_find(9, "net", Cursor(3, "root")))
    assert (number, wire.parse_find(rest)) == (9, ("net", Cursor(3, "root")))
    assert wire.parse_number(wire.encode_hello(0xFFFFFFFF)) == (0xFFFFFFFF, b"")


def test_answers_both_ways() -> None:
    state = State((1 << 64) - 1, 5)
    number, known, rest = wire.parse_answer(wire.encode_answer(4, state, wire.encode_records([RECORD, RECORD])))
    assert (number, known, wire.parse_records(rest)) == (4, state, (False, [RECORD, RECORD]))
    assert wire.parse_records(wire.encode_records([])) == (False, [])
    more, some = wire.parse_records(wire.encode_records([RECORD] * 10_000))
    assert more
    assert 0 < len(some) < 1000


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"root",
        b"root\0",
        b"root\0block\0key\0",
        b"root\0block\0key\0v\nw\0",
        b"root\0bl\xffck\0",
        b"..\0block\0",
        b"a\0" * 100,
        b"root\0block\0" + b"k\0v\0" * 33,
    ],
)
def test_what_is_no_record(data: bytes) -> None:
    with pytest.raises(PeerProtocolError):
        wire.parse_record(data, DomId(1))


@pytest.mark.parametrize(
    "data", [b"", b"\0\xff", b"\0\xff\xff\xff\xff", b"\0\4\0\0\0abc\0", b"\0\x0d\0\0\0-1\0root\0block\0"]
)
def test_what_is_no_list(data: bytes) -> None:
    with pytest.raises(PeerProtocolError):
        wire.parse_records(data)
