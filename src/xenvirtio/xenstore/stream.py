"""Where the connection of a ring stands in its two byte streams: what a successor needs to go on in mid-message.

Ring indices run freely, so they are positions in streams, and those the server writes survive it in the guest's page.
What always holds between a server and its journal:

- the journal has what a request changed and all that goes out because of it, before any byte of it is in the ring and
  before `req_cons` passes the request;
- so `req_cons` in the page is never ahead of `consumed` in the journal, nor `rsp_prod` of `produced` plus `unsent`.

A successor takes `consumed` and `unsent` from the journal and `rsp_prod` from the page: requests before `consumed` are
not handled again, bytes before `rsp_prod` not sent again. Everything else there is to know is in the page itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

POSITION_MASK = 0xFFFFFFFF


@dataclass(slots=True)
class RingStream:
    """Positions count bytes modulo 2**32."""

    consumed: int = 0
    """Requests before it are handled, or begin in `partial`."""
    partial: bytes = b""
    """The beginning of a message, taken out to let the rest in."""
    produced: int = 0
    """Of what is sent, bytes before it are in the ring."""
    unsent: bytearray = field(default_factory=bytearray)
    """Those that follow."""
    has_waiting: bool = False
    """Events wait that are not in `unsent` yet: a restart loses them, so that every watch has to fire."""
    recorded_bytes: int = 0
    """How much of `unsent` the journal has."""

    def sent(self, length: int) -> None:
        """So many bytes of `unsent` are in the ring."""
        del self.unsent[:length]
        self.recorded_bytes = max(0, self.recorded_bytes - length)
        self.produced = (self.produced + length) & POSITION_MASK

    def covers(self, produced: int) -> bool:
        """Can a predecessor have sent up to there? Else somebody has changed an index that is not his own."""
        return (produced - self.produced) & POSITION_MASK <= len(self.unsent)

    def skip_to(self, produced: int) -> None:
        """A predecessor has sent up to there, after the journal's last word."""
        self.sent((produced - self.produced) & POSITION_MASK)


Encoded = dict[str, Any]
"""A stream as JSON has it; bytes as latin-1 text."""


def encode_stream(stream: RingStream | None) -> Encoded | None:
    """Return the whole of it; None (the ring is to be reset before use) stays None."""
    if stream is None:
        return None
    return _encode(stream, bytes(stream.unsent))


def encode_progress(stream: RingStream) -> Encoded:
    """Return what has changed since this was last called: of `unsent` only what came since."""
    encoded = _encode(stream, bytes(stream.unsent[stream.recorded_bytes :]))
    stream.recorded_bytes = len(stream.unsent)
    return encoded


def join_progress(known: Encoded | None, progress: Encoded) -> Encoded:
    """Return the whole that a journal's `known` and a later `progress` make.

    Raises:
        ValueError: they do not fit together.
    """
    if known is None:
        return progress
    sent = (int(progress["produced"]) - int(known["produced"])) & POSITION_MASK
    if sent > len(known["unsent"]):
        raise ValueError(f"ring output at {progress['produced']} does not follow {known['produced']}")
    return {**progress, "unsent": known["unsent"][sent:] + progress["unsent"]}


def decode_stream(encoded: Mapping[str, Any] | None) -> RingStream | None:
    """Return the stream again."""
    if encoded is None:
        return None
    unsent = bytearray(encoded["unsent"].encode("latin-1"))
    return RingStream(
        consumed=int(encoded["consumed"]) & POSITION_MASK,
        partial=encoded["partial"].encode("latin-1"),
        produced=int(encoded["produced"]) & POSITION_MASK,
        unsent=unsent,
        has_waiting=bool(encoded["waiting"]),
        recorded_bytes=len(unsent),
    )


def _encode(stream: RingStream, unsent: bytes) -> Encoded:
    return {
        "consumed": stream.consumed,
        "partial": stream.partial.decode("latin-1"),
        "produced": stream.produced,
        "unsent": unsent.decode("latin-1"),
        "waiting": stream.has_waiting,
    }
