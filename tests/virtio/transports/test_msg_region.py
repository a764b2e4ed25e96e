"""The region's layout, and a hostile other end."""

from __future__ import annotations

import struct

import pytest

from tests.virtio.transports.msg_machine import REGION_BYTES, Links
from xenvirtio.errors import PeerProtocolError, SessionLostError, UsageError
from xenvirtio.virtio.transports import msg_region
from xenvirtio.virtio.transports.msg_codec import Message
from xenvirtio.virtio.transports.msg_link import LinkState, MessageLink
from xenvirtio.virtio.transports.msg_region import (
    BLOCK_BYTES,
    CONSUMED_WORD,
    INCARNATION_WORD,
    PRODUCED_WORD,
    RINGS_OFFSET,
    SLOTS,
    RegionLink,
    Role,
    View,
)

PING = Message(3, b"abcd", token=1, is_bus=True).encode()


def opened() -> tuple[Links, MessageLink, MessageLink]:
    links = Links("region")
    driver, device = links.driver(), links.device()
    device.announce()
    driver.announce()
    device.accept()
    driver.accept()
    assert (driver.state, device.state) == (LinkState.OPEN, LinkState.OPEN)
    return links, driver, device


def poke(links: Links, offset: int, value: int) -> None:
    links.memory.view[offset : offset + 4] = struct.pack("<I", value & 0xFFFFFFFF)


def test_the_layout_is_this() -> None:
    links, driver, _ = opened()
    driver.send(PING)
    words = struct.unpack_from("<10I", links.memory.view, 0)
    assert words == (0x474D5658, 1, 1, REGION_BYTES // 4096, 1, 2, 1, 1, 0, 0)
    words = struct.unpack_from("<10I", links.memory.view, BLOCK_BYTES)
    assert words == (0x474D5658, 1, 2, REGION_BYTES // 4096, 1, 1, 2, 0, 0, 0)
    assert bytes(links.memory.view[RINGS_OFFSET : RINGS_OFFSET + len(PING)]) == PING
    assert msg_region.DMA_OFFSET == 0x9000


def test_messages_keep_their_order_around_the_ring_and_the_numbers_wrap() -> None:
    _, driver, device = opened()
    for number in range(3 * SLOTS):
        message = Message(3, number.to_bytes(4, "little") * (number % 60), token=1, is_bus=True).encode()
        assert driver.send(message)
        assert device.receive() == message
        assert device.receive() is None


def test_indices_run_freely_through_32_bits() -> None:
    links, driver, device = opened()
    for link, other in ((driver, "_produced"), (device, "_consumed")):
        setattr(link, other, 0xFFFFFFFE)
    poke(links, PRODUCED_WORD, 0xFFFFFFFE)
    poke(links, BLOCK_BYTES + CONSUMED_WORD, 0xFFFFFFFE)
    for _ in range(4):
        assert driver.send(PING)
        assert device.receive() == PING
    assert device.receive() is None


def test_a_full_ring_takes_no_more_and_tells_when_there_is_room() -> None:
    links, driver, device = opened()
    for _ in range(SLOTS):
        assert driver.send(PING)
    assert not driver.send(PING)
    before = links.notified
    assert device.receive() == PING
    assert links.notified == before + 1
    assert driver.send(PING)
    before = links.notified
    assert device.receive() == PING
    assert links.notified == before, "nobody waits for room any more"


def test_memory_of_any_content_is_no_other_end() -> None:
    for fill in (b"\0", b"\xff", b"\xc2"):
        links = Links("region")
        links.memory.view[:] = fill * REGION_BYTES
        device = links.device()
        device.announce()
        assert device.state is LinkState.ABSENT
        assert device.problem is None


@pytest.mark.parametrize(
    ("word", "value", "said"),
    [
        (msg_region.VERSION_WORD, 2, "layout version 2"),
        (msg_region.ROLE_WORD, 2, "role 2"),
        (msg_region.PAGES_WORD, 15, "15 pages"),
        (msg_region.VIEW_WORD, 2, "uncached"),
    ],
)
def test_an_end_that_does_not_fit_is_named(word: int, value: int, said: str) -> None:
    links = Links("region")
    driver, device = links.driver(), links.device()
    device.announce()
    driver.announce()
    poke(links, word, value)
    assert device.state is LinkState.ABSENT
    assert said in str(device.problem)


def test_both_ends_in_one_role_never_meet() -> None:
    links = Links("region")
    one, two = links.device(), links.device()
    one.announce()
    two.announce()
    assert one.state is two.state is LinkState.ABSENT


@pytest.mark.parametrize("produced", [65, 1 << 16, 0xFFFFFFFF, 1 << 31])
def test_an_impossible_number_of_messages_ends_the_session(produced: int) -> None:
    links, _, device = opened()
    poke(links, PRODUCED_WORD, produced)
    with pytest.raises(PeerProtocolError, match="in a ring of 64") as caught:
        device.receive()
    assert not isinstance(caught.value, SessionLostError)


@pytest.mark.parametrize("consumed", [1, 65, 0xFFFFFF00])
def test_messages_taken_that_were_never_sent_end_the_session(consumed: int) -> None:
    links, _, device = opened()
    poke(links, CONSUMED_WORD, consumed)
    with pytest.raises(PeerProtocolError, match="never sent"):
        device.send(PING)


@pytest.mark.parametrize("size", [0, 7, 257, 0xFFFF])
def test_a_message_of_an_impossible_size_ends_the_session(size: int) -> None:
    links, driver, device = opened()
    driver.send(PING)
    links.memory.view[RINGS_OFFSET + 6 : RINGS_OFFSET + 8] = struct.pack("<H", size)
    with pytest.raises(PeerProtocolError, match=f"of {size} bytes"):
        device.receive()


def test_indices_set_back_by_a_restart_are_no_crime() -> None:
    links, driver, device = opened()
    driver.send(PING)
    device.receive()
    poke(links, INCARNATION_WORD, 77)
    poke(links, PRODUCED_WORD, 0)
    with pytest.raises(SessionLostError):
        device.receive()


def test_what_does_not_fit_is_a_bug_of_ours() -> None:
    _, driver, _ = opened()
    for data in (b"", bytes(7), bytes(257)):
        with pytest.raises(UsageError):
            driver.send(data)
    links = Links("region")
    for length in (0x8000, REGION_BYTES + 1):
        with pytest.raises(UsageError):
            RegionLink(links.memory.address, length, Role.DRIVER, View.CACHED, lambda: None, links.draw)


def test_the_other_ends_block_and_the_dma_area_are_never_written() -> None:
    links, driver, _ = opened()
    links.memory.view[BLOCK_BYTES : 2 * BLOCK_BYTES] = before = bytes(links.memory.view[BLOCK_BYTES : 2 * BLOCK_BYTES])
    driver.send(PING)
    driver.announce()
    driver.leave()
    assert bytes(links.memory.view[BLOCK_BYTES : 2 * BLOCK_BYTES]) == before
    assert set(links.memory.view[msg_region.DMA_OFFSET :]) == {0xC2}
