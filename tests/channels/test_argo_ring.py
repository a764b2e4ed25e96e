from __future__ import annotations

import random
import struct

import pytest

from xenvirtio.channels.argo_ring import DATA_OFFSET, HEADER, SLOT_BYTES, ArgoMessage, ArgoRing
from xenvirtio.errors import PeerProtocolError
from xenvirtio.ids import ArgoPort, DomId
from xenvirtio.memory.buffer import HostBuffer
from xenvirtio.xen import argo_abi
from xenvirtio.xen.capabilities import ArgoAddress


class Xen:
    """Writes into a ring as Xen does, or as it never would."""

    def __init__(self, length_bytes: int) -> None:
        self.buffer = HostBuffer(DATA_OFFSET + length_bytes)
        self.ring = ArgoRing(self.buffer.address, length_bytes)
        self.length_bytes = length_bytes
        self.tx = 0

    @property
    def rx(self) -> int:
        return int.from_bytes(self.buffer.view[0:4], "little")

    def free(self) -> int:
        return (self.rx - self.tx) % self.length_bytes or self.length_bytes

    def write(self, data: bytes, *, port: int = 7, domid: int = 3, kind: int = 0, length: int | None = None) -> None:
        whole = HEADER.pack(len(data) + HEADER.size if length is None else length, port, domid, 0, kind) + data
        for index, byte in enumerate(whole):
            self.buffer.view[DATA_OFFSET + (self.tx + index) % self.length_bytes] = byte
        self.announce((self.tx + -(-len(whole) // SLOT_BYTES) * SLOT_BYTES) % self.length_bytes)

    def announce(self, tx: int) -> None:
        self.tx = tx
        self.buffer.view[4:8] = struct.pack("<I", tx)


def test_the_layout_is_that_of_the_other_side() -> None:
    """The ring (receiver) and the emulated Xen (writer) do not import each other."""
    assert DATA_OFFSET == argo_abi.RING_DATA_OFFSET
    assert SLOT_BYTES == argo_abi.SLOT_BYTES
    assert HEADER.format == argo_abi.HEADER.format


def test_a_message() -> None:
    xen = Xen(256)
    assert xen.ring.next_message() is None
    xen.write(b"hello", port=0xFFFF0001, domid=5, kind=0xDEADBEEF)
    assert xen.ring.next_message() == ArgoMessage(ArgoAddress(DomId(5), ArgoPort(0xFFFF0001)), 0xDEADBEEF, b"hello")
    assert xen.rx == 32
    assert xen.ring.taken_bytes == 32
    assert xen.ring.next_message() is None


def test_messages_of_every_length_wrap_at_every_place() -> None:
    chance = random.Random(1)
    xen = Xen(160)
    assert xen.ring.message_max_bytes == 128
    for number in range(2000):
        data = chance.randbytes(chance.randrange(0, 129))
        assert len(data) + HEADER.size < xen.free()
        xen.write(data, kind=number)
        message = xen.ring.next_message()
        assert message is not None
        assert (message.kind, message.data) == (number, data)


def test_many_wait_in_order() -> None:
    xen = Xen(512)
    for number in range(10):
        xen.write(bytes([number]) * number)
    taken = [xen.ring.next_message() for _ in range(10)]
    assert [len(message.data) for message in taken if message is not None] == list(range(10))
    assert xen.ring.next_message() is None


@pytest.mark.parametrize("tx", [256, 8, 0xFFFFFFF0, 17])
def test_a_pointer_outside_is_an_error(tx: int) -> None:
    xen = Xen(256)
    xen.announce(tx)
    with pytest.raises(PeerProtocolError, match="tx_ptr"):
        xen.ring.next_message()


@pytest.mark.parametrize("length", [0, 15, 33, 0xFFFFFFFF])
def test_a_length_that_cannot_be_is_an_error_and_drops_what_is_there(length: int) -> None:
    xen = Xen(256)
    xen.write(bytes(16), length=length)
    with pytest.raises(PeerProtocolError, match="a message of"):
        xen.ring.next_message()
    assert xen.ring.next_message() is None
    xen.write(b"again")
    message = xen.ring.next_message()
    assert message is not None
    assert message.data == b"again"
