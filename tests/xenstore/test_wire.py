from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xenvirtio.errors import PeerProtocolError, UsageError
from xenvirtio.xenstore.wire import (
    ERROR_NAMES,
    PAYLOAD_MAX,
    Message,
    MessageDecoder,
    MessageType,
    error_payload,
    join_strings,
    parse_error,
    split_strings,
)

u32 = st.integers(0, 0xFFFFFFFF)
messages = st.builds(Message, type=u32, request_id=u32, transaction_id=u32, payload=st.binary(max_size=200))


def decode_all(decoder: MessageDecoder) -> list[Message]:
    return list(iter(decoder.next_message, None))


@pytest.mark.parametrize(
    ("message", "encoded"),
    [
        (Message(MessageType.READ, 1, 0, b"/a\0"), "02000000 01000000 00000000 03000000 2f6100"),
        (Message(MessageType.WATCH_EVENT, 0, 0, b"a\0t\0"), "0f000000 00000000 00000000 04000000 61007400"),
        (Message(MessageType.SET_QUOTA, 0xFFFFFFFF, 7, b""), "1a000000 ffffffff 07000000 00000000"),
        (Message(128, 2, 3, b""), "80000000 02000000 03000000 00000000"),
    ],
)
def test_messages_in_both_directions(message: Message, encoded: str) -> None:
    decoder = MessageDecoder()
    decoder.feed(bytes.fromhex(encoded))
    assert message.encode() == bytes.fromhex(encoded)
    assert decode_all(decoder) == [message]


def test_operation_numbers_are_the_protocols() -> None:
    assert [kind.value for kind in MessageType] == [*range(20), *range(21, 27)]


@given(st.lists(messages, max_size=5), st.lists(st.integers(0, 1200), max_size=8))
def test_chunk_boundaries_do_not_matter(sent: list[Message], cuts: list[int]) -> None:
    stream = b"".join(message.encode() for message in sent)
    decoder, received = MessageDecoder(), []
    edges = sorted({0, len(stream), *(min(cut, len(stream)) for cut in cuts)})
    for start, end in pairwise(edges):
        decoder.feed(stream[start:end])
        received += decode_all(decoder)
    assert received == sent
    assert decoder.pending_bytes == 0


def test_an_over_long_payload_is_refused_in_both_directions() -> None:
    decoder = MessageDecoder()
    decoder.feed(Message(2, 0, 0, b"x" * PAYLOAD_MAX).encode()[:12] + (PAYLOAD_MAX + 1).to_bytes(4, "little"))
    with pytest.raises(PeerProtocolError, match="4097"):
        decoder.next_message()
    with pytest.raises(UsageError):
        Message(2, 0, 0, b"x" * (PAYLOAD_MAX + 1)).encode()


@given(st.lists(st.binary(max_size=9).filter(lambda text: b"\0" not in text)))
def test_strings_round_trip(strings: list[bytes]) -> None:
    assert split_strings(join_strings(strings)) == strings


def test_strings_must_be_terminated() -> None:
    with pytest.raises(PeerProtocolError):
        split_strings(b"a\0b")


def test_error_names_round_trip_and_unknown_ones_are_einval() -> None:
    assert [parse_error(error_payload(name)) for name in ERROR_NAMES] == list(ERROR_NAMES)
    assert error_payload("ENOTCONN") == b"EINVAL\0"
    assert parse_error(b"EWHAT\0") == parse_error(b"\xff") == "EINVAL"
