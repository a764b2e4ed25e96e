"""Whatever a frontend or a registry sends over Argo ends in a value or a PeerProtocolError."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from xenvirtio.errors import PeerProtocolError
from xenvirtio.ids import DomId
from xenvirtio.metadata import argo_wire as wire
from xenvirtio.metadata.directory import FIELDS_MAX, VALUE_MAX, DeviceRecord, check_record

words = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}", fullmatch=True)
values = st.text(st.characters(exclude_categories=("C", "Z")), max_size=VALUE_MAX // 4)
records = st.builds(
    DeviceRecord,
    words,
    words,
    st.integers(0, 0x7FEF).map(DomId),
    st.dictionaries(words, values, max_size=FIELDS_MAX),
)
alphabet = [b"\0", b"root", b"block", b"k", b"\xff", b"0", b"\n", b"1", b"\4\0\0\0"]
pieces = st.lists(st.sampled_from(alphabet), max_size=90)
hostile = st.one_of(st.binary(max_size=400), pieces.map(b"".join))


@given(records, st.integers(0, 0xFFFFFFFF))
def test_a_record_comes_back(record: DeviceRecord, number: int) -> None:
    check_record(record.name, record.type, record.fields)
    got, rest = wire.parse_number(wire.encode_register(number, record.name, record.type, record.fields))
    assert (got, wire.parse_record(rest, record.domid)) == (number, record)


@given(st.lists(records, max_size=5))
def test_a_list_comes_back(some: list[DeviceRecord]) -> None:
    assert wire.parse_records(wire.encode_records(some)) == (False, some)


@given(hostile)
def test_any_bytes(data: bytes) -> None:
    found: list[DeviceRecord] = []
    parsers: list[Callable[[], object]] = [
        lambda: found.append(wire.parse_record(data, DomId(1))),
        lambda: found.extend(wire.parse_records(data)[1]),
        lambda: wire.parse_name(data),
        lambda: wire.parse_find(data),
        lambda: wire.parse_answer(data),
        lambda: wire.parse_number(data),
    ]
    for parse in parsers:
        try:
            parse()
        except PeerProtocolError:
            pass
    for record in found:  # what was let in is within the bounds
        check_record(record.name, record.type, record.fields)
