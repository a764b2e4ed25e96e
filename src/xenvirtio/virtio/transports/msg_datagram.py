"""The carrier of virtio-msg over datagrams: Argo, or a pair of queues in one process.

Where nothing is shared, the two ends say in messages what the header of a region says: EVENT_SESSION, a bus message of
our own, carries incarnation and `seen` (see `msg_link`), and how DMA addresses are meant:

    magic u32, version u32, incarnation u32, seen u32, DMA kind u32, pages of the window u32 (0 with grants)

The carrier keeps the order of messages and loses none unless an end restarts; an end's queue does not outlive it. So
what arrives before the other end's EVENT_SESSION belongs to an old session and is dropped. An end that is not there
yet is told again by `remind`, which the owner calls now and then while it waits.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Protocol

from xenvirtio.errors import PeerProtocolError, SessionLostError
from xenvirtio.virtio.transports.msg_codec import Message, parse_message
from xenvirtio.virtio.transports.msg_layout import BusMessageId
from xenvirtio.virtio.transports.msg_link import Draw, LinkState, draw_incarnation

MAGIC = 0x474D5658
VERSION = 1
SESSION = struct.Struct("<IIIIII")


USELESS_MAX = 256
"""Announcements and strays taken in one go. A channel holds what was sent before; a flood never ends."""


class DmaKind(IntEnum):
    """What a DMA address is."""

    WINDOW = 1
    """An offset into a window that both ends see."""
    GRANTS = 2
    """Bit 63, and a grant reference of the driver's domain."""


class DatagramChannel(Protocol):
    """Carries datagrams both ways; neither call waits."""

    def send(self, data: bytes) -> bool:
        """Send one; False when there is no room for it now, or nobody there."""
        ...

    def receive(self) -> bytes | None:
        """Take the next one, or None."""
        ...


class DatagramLink:
    """One end over `channel`; see `MessageLink`."""

    def __init__(self, channel: DatagramChannel, draw: Draw, dma: DmaKind, window_pages: int = 0) -> None:
        self._channel = channel
        self._draw = draw
        self._dma = dma
        self._window_pages = window_pages
        self._incarnation = 0
        self._seen = 0
        self._theirs = 0
        self._theirs_seen = 0
        self._is_due = False
        self._held: bytes | None = None
        """A message that `state` has found while it looked for the other end's announcement."""
        self.problem: str | None = None
        self.dropped = 0

    @property
    def state(self) -> LinkState:
        self._pump()
        if self._theirs == 0 or self._incarnation == 0:
            return LinkState.ABSENT
        if self._theirs != self._seen:
            return LinkState.CHANGED
        return LinkState.OPEN if self._theirs_seen == self._incarnation else LinkState.WAITING

    def _pump(self) -> None:
        """Take in announcements up to the next other message; send what is due.

        Raises:
            PeerProtocolError: so many came at once that no correct end can have sent them.
        """
        for _ in range(USELESS_MAX):
            data = self._channel.receive() if self._held is None else None
            if data is None:
                break
            self._take(data)
        else:
            raise PeerProtocolError(f"the other end sent {USELESS_MAX} useless messages at a stretch")
        if self._is_due:
            self._tell()

    def _tell(self) -> None:
        """Send our announcement; it stays due where there is no room for it."""
        self._is_due = not self._channel.send(self._announcement())

    def _take(self, data: bytes) -> None:
        session = _parse_session(data)
        if session is not None:
            self._take_session(*session)
        elif self._theirs and self._theirs == self._seen and self._theirs_seen == self._incarnation:
            self._held = data
        else:
            self.dropped += 1
            self._is_due = True  # it speaks as if there were a session: tell it

    def _take_session(self, version: int, incarnation: int, seen: int, dma: int, pages: int) -> None:
        self.problem = None
        if version != VERSION:
            self.problem = f"the other end uses version {version} of the session, this one {VERSION}"
        elif (dma, pages) != (self._dma, self._window_pages):
            self.problem = f"the other end means other DMA addresses (kind {dma}, {pages} pages)"
        if self.problem:
            self._theirs = self._theirs_seen = 0
            return
        self._theirs, self._theirs_seen = incarnation, seen
        if incarnation and incarnation == self._seen and seen != self._incarnation:
            self._is_due = True  # it has not heard of us, or not of our present incarnation

    def announce(self) -> None:
        self._incarnation = draw_incarnation(self._draw, other_than=self._incarnation)
        self._seen = 0
        self._held = None
        self._tell()

    def remind(self) -> None:
        self._tell()

    def accept(self) -> None:
        self._seen = self._theirs
        self._held = None
        self._tell()

    def leave(self) -> None:
        self._incarnation = self._seen = 0
        self._channel.send(self._announcement())

    def send(self, data: bytes) -> bool:
        self._check_open()
        return not self._is_due and self._channel.send(data)

    def receive(self) -> bytes | None:
        self._check_open()
        data, self._held = self._held, None
        return data

    def _check_open(self) -> None:
        state = self.state
        if state is not LinkState.OPEN:
            raise SessionLostError(f"no session with the other end: {state.value}")

    def _announcement(self) -> bytes:
        payload = SESSION.pack(MAGIC, VERSION, self._incarnation, self._seen, self._dma, self._window_pages)
        return Message(BusMessageId.EVENT_SESSION, payload, is_bus=True).encode()


def _parse_session(data: bytes) -> tuple[int, int, int, int, int] | None:
    """Return version, incarnation, seen, DMA kind and pages, or None for any other message."""
    try:
        message = parse_message(data)
        if not message.is_bus or message.id != BusMessageId.EVENT_SESSION:
            return None
        magic, version, incarnation, seen, dma, pages = message.fields(SESSION)
    except PeerProtocolError:
        return None
    return (version, incarnation, seen, dma, pages) if magic == MAGIC else None
