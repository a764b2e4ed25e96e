from __future__ import annotations

import pytest

from xenvirtio.errors import PeerProtocolError
from xenvirtio.virtio.transports import msg_layout as layout
from xenvirtio.virtio.transports.msg_codec import Message, parse_message


@pytest.mark.parametrize(
    ("message", "data"),
    [
        (Message(0x02, device=3, token=0x1234), "00 02 0300 3412 0800"),
        (Message(0x07, b"\x0f\0\0\0", 3, 1, is_response=True), "01 07 0300 0100 0c00 0f000000"),
        (Message(0x41, b"\x01\0\0\0\0\0\0\0", 3), "00 41 0300 0000 1000 0100000000000000"),
        (Message(0x03, b"abcd", token=9, is_bus=True), "02 03 0000 0900 0c00 61626364"),
        (Message(0x03, b"abcd", token=9, is_bus=True, is_response=True), "03 03 0000 0900 0c00 61626364"),
        (Message(0xC0, b"", is_bus=True), "02 c0 0000 0000 0800"),
    ],
)
def test_a_message_is_these_bytes(message: Message, data: str) -> None:
    assert message.encode() == bytes.fromhex(data)
    assert parse_message(bytes.fromhex(data)) == message


def test_the_frame_may_be_longer_and_reserved_bits_set() -> None:
    assert parse_message(bytes.fromhex("fc 02 0300 3412 0800 ffff")) == Message(0x02, device=3, token=0x1234)


@pytest.mark.parametrize(
    "data",
    [
        "",
        "00 02 0300 3412 08",
        "00 02 0300 3412 0700",
        "00 02 0300 3412 0900",
        "00 02 0300 0000 0800",  # a request without a token
        "00 41 0300 0100 0800",  # an event with one
        "01 41 0300 0000 0800",  # an event as a response
        "00 02 0300 3412 0101" + 249 * "00",  # longer than any message on our buses
    ],
)
def test_what_is_no_message(data: str) -> None:
    with pytest.raises(PeerProtocolError):
        parse_message(bytes.fromhex(data))


def test_sizes_of_the_draft() -> None:
    sizes = {name: getattr(layout, name).size for name in ("HEADER", "DEVICE_INFO", "QUEUE", "CONFIG_DATA", "DEVICES")}
    assert sizes == {"HEADER": 8, "DEVICE_INFO": 24, "QUEUE": 40, "CONFIG_DATA": 12, "DEVICES": 6}


def test_a_response_echoes_its_request() -> None:
    answer = Message(5, b"x", 4, 3).response(b"yz")
    assert (answer.id, answer.device, answer.token, answer.payload, answer.is_response) == (5, 4, 3, b"yz", True)
