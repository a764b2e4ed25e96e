"""An Argo ring from the receiver's side: messages out of memory that Xen writes.

Only Xen writes messages and `tx_ptr`; only the receiver writes `rx_ptr`. Xen leaves one slot free, so equal pointers
mean empty. A message starts on a slot of 16 bytes and may wrap at the ring's end, between header and data or inside
the data. What does not fit together (frames that Linux has moved away from Xen, say) is an error, never a guess.

Source: xen/include/public/argo.h, struct xen_argo_ring and xen_argo_ring_message_header.
"""

from __future__ import annotations

import ctypes
import struct
from dataclasses import dataclass

from xenvirtio.errors import PeerProtocolError
from xenvirtio.ids import ArgoPort, DomId
from xenvirtio.memory import raw
from xenvirtio.xen.capabilities import ArgoAddress

RX_OFFSET, TX_OFFSET, DATA_OFFSET = 0, 4, 64
SLOT_BYTES = 16
HEADER = struct.Struct("<IIHHI")  # length with this header, source port, source domid, pad, kind


@dataclass(frozen=True, slots=True)
class ArgoMessage:
    """One message. Of `sender` Xen vouches for the domid, not for the port; `kind` is the sender's 32-bit number."""

    sender: ArgoAddress
    kind: int
    data: bytes


class ArgoRing:
    """The ring at `address`, with `length_bytes` for messages. Not for two threads at once."""

    def __init__(self, address: int, length_bytes: int) -> None:
        self._address = address
        self._length_bytes = length_bytes
        self._rx = 0
        self.taken_bytes = 0
        """What has been taken out since somebody set this to 0."""

    @property
    def message_max_bytes(self) -> int:
        """The longest message that it ever takes."""
        return self._length_bytes - HEADER.size - SLOT_BYTES

    def next_message(self) -> ArgoMessage | None:
        """Take the next message out, None when there is none.

        Raises:
            PeerProtocolError: this is not what Xen writes. What was in the ring is dropped.
        """
        tx = raw.load_u32(self._address + TX_OFFSET)  # acquires: what it announces is there
        if tx == self._rx:
            return None
        if tx >= self._length_bytes or tx % SLOT_BYTES:
            raise PeerProtocolError(f"Argo ring of {self._length_bytes} bytes: tx_ptr is {tx}")
        there_bytes = (tx - self._rx) % self._length_bytes
        length, port, domid, _, kind = HEADER.unpack(self._bytes_at(self._rx, HEADER.size))
        if not HEADER.size <= length <= there_bytes:
            self._advance(there_bytes)
            raise PeerProtocolError(f"Argo ring: a message of {length} bytes where {there_bytes} are")
        data = self._bytes_at((self._rx + HEADER.size) % self._length_bytes, length - HEADER.size)
        self._advance(-(-length // SLOT_BYTES) * SLOT_BYTES)
        return ArgoMessage(ArgoAddress(DomId(domid), ArgoPort(port)), kind, data)

    def _bytes_at(self, offset: int, length_bytes: int) -> bytes:
        start = self._address + DATA_OFFSET
        first = min(length_bytes, self._length_bytes - offset)
        return ctypes.string_at(start + offset, first) + ctypes.string_at(start, length_bytes - first)

    def _advance(self, by_bytes: int) -> None:
        self._rx = (self._rx + by_bytes) % self._length_bytes
        self.taken_bytes += by_bytes
        raw.store_u32(self._address + RX_OFFSET, self._rx)  # releases: we have read before Xen writes there again
