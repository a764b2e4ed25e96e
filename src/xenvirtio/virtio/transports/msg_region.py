"""The carrier of virtio-msg in one static shared region: a header, two message rings, and the rest for DMA.

    0x0000  the driver end's block     each block is written by its own end only
    0x0080  the device end's block
    0x1000  ring of messages from the driver to the device: 64 slots of 256 bytes
    0x5000  ring of messages from the device to the driver
    0x9000  DMA area, up to the end of the region: the driver's to hand out. A DMA address is an offset into the region

A block, 32-bit words:

    0x00 magic   0x04 layout version   0x08 role   0x0C size of the region in pages   0x10 view
    0x14 incarnation   0x18 seen (see `msg_link`)
    0x1C produced   0x20 consumed: messages put into and taken from the rings by this end, free-running
    0x24 wants room: set by a producer that found its ring full

Xen does not clear such a region: it holds anything until both ends have agreed. The other end is not trusted: every
word is read once, then checked. All accesses are aligned 32- and 64-bit words, so that a region mapped as device
memory (UIO) takes them; `view` says how an end has mapped it, because a cached and an uncached view of the same
memory do not agree on real hardware.

The order of stores: a slot before the index that announces it, both indices at 0 before a new incarnation or `seen`.
An event is a level: whoever gets one looks at the state and drains the ring.

An engine module for the sake of its barriers: compiled, loads acquire, stores release and `fence` is a full one.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from enum import IntEnum

from xenvirtio.errors import PeerProtocolError, SessionLostError, UsageError
from xenvirtio.ids import PAGE_SIZE
from xenvirtio.virtio.transports.msg_layout import HEADER, MESSAGE_BYTES_MAX
from xenvirtio.virtio.transports.msg_link import Draw, LinkState, draw_incarnation

try:
    import cython
except ImportError:
    from xenvirtio import interpreted as cython

if not cython.compiled:
    from xenvirtio.memory.raw import fence, load_u32, load_u64, store_u32, store_u64

MAGIC = 0x474D5658
"""`XVMG`, little-endian."""
LAYOUT_VERSION = 1

BLOCK_BYTES = 0x80
MAGIC_WORD, VERSION_WORD, ROLE_WORD, PAGES_WORD, VIEW_WORD = 0x00, 0x04, 0x08, 0x0C, 0x10
INCARNATION_WORD, SEEN_WORD, PRODUCED_WORD, CONSUMED_WORD, WANTS_ROOM_WORD = 0x14, 0x18, 0x1C, 0x20, 0x24

SLOTS = 64
SLOT_BYTES = MESSAGE_BYTES_MAX
RINGS_OFFSET = 0x1000
RING_BYTES = SLOTS * SLOT_BYTES
DMA_OFFSET = RINGS_OFFSET + 2 * RING_BYTES
REGION_BYTES_MIN = DMA_OFFSET + 7 * PAGE_SIZE
"""64 KiB: less leaves no room for a queue and a few buffers."""
REGION_BYTES_MAX = 1 << 40


class Role(IntEnum):
    DRIVER = 1
    DEVICE = 2


class View(IntEnum):
    """How an end has mapped the region."""

    CACHED = 1
    """/dev/mem, or ordinary shared memory."""
    UNCACHED = 2
    """UIO."""


class RegionLink:
    """One end (`role`) of the region of `length_bytes` at host address `address`; see `MessageLink`.

    `notify` sends an event to the other end.
    """

    def __init__(
        self,
        address: int,
        length_bytes: int,
        role: Role,
        view: View,
        notify: Callable[[], None],
        draw: Draw,
    ) -> None:
        if address % 8 or not REGION_BYTES_MIN <= length_bytes <= REGION_BYTES_MAX or length_bytes % PAGE_SIZE:
            raise UsageError(f"no region for messages: {length_bytes:#x} bytes at {address:#x}")
        self._notify = notify
        self._draw = draw
        self._role = role
        self._view = view
        self._pages = length_bytes // PAGE_SIZE
        is_driver = role is Role.DRIVER
        rings = (address + RINGS_OFFSET, address + RINGS_OFFSET + RING_BYTES)
        self._ours, self._theirs = address + BLOCK_BYTES * (not is_driver), address + BLOCK_BYTES * is_driver
        self._outgoing, self._incoming = rings if is_driver else rings[::-1]
        self._incarnation = 0
        self._seen = 0
        self._produced = 0
        self._consumed = 0
        self._wants_room = False
        self.problem: str | None = None

    @property
    def state(self) -> LinkState:
        theirs = self._load(self._theirs + INCARNATION_WORD)
        if theirs == 0 or self._incarnation == 0:
            return LinkState.ABSENT
        if theirs != self._seen:
            return LinkState.CHANGED if self._is_acceptable() else LinkState.ABSENT
        if self._load(self._theirs + SEEN_WORD) != self._incarnation:
            return LinkState.WAITING
        return LinkState.OPEN

    def _is_acceptable(self) -> bool:
        magic, version, role, pages, view = (
            self._load(self._theirs + word) for word in (MAGIC_WORD, VERSION_WORD, ROLE_WORD, PAGES_WORD, VIEW_WORD)
        )
        self.problem = None
        if magic != MAGIC:  # never written by an end of ours: what the memory held before
            return False
        if version != LAYOUT_VERSION:
            self.problem = f"the other end uses layout version {version}, this one {LAYOUT_VERSION}"
        elif role != 3 - self._role:
            self.problem = f"the block of the other end says role {role}, not {3 - self._role}"
        elif pages != self._pages:
            self.problem = f"the other end sees a region of {pages} pages, this one of {self._pages}"
        elif view != self._view:
            self.problem = "one end maps the region cached (/dev/mem), the other uncached (UIO): both must do the same"
        return self.problem is None

    def announce(self) -> None:
        self._incarnation = draw_incarnation(self._draw, other_than=self._incarnation)
        self._seen = 0
        self._store(INCARNATION_WORD, 0)
        fence()  # the other end may be reading: no old number beside new indices
        for word, value in (
            (SEEN_WORD, 0),
            (MAGIC_WORD, MAGIC),
            (VERSION_WORD, LAYOUT_VERSION),
            (ROLE_WORD, self._role),
            (PAGES_WORD, self._pages),
            (VIEW_WORD, self._view),
        ):
            self._store(word, value)
        self._clear_indices()
        self._store(INCARNATION_WORD, self._incarnation)
        fence()
        self._notify()

    def remind(self) -> None:
        """Nothing to do: what was announced lies in memory, and an event waits for whoever comes."""

    def accept(self) -> None:
        self._clear_indices()
        self._seen = self._load(self._theirs + INCARNATION_WORD)
        self._store(SEEN_WORD, self._seen)
        fence()
        self._notify()

    def _clear_indices(self) -> None:
        self._produced = self._consumed = 0
        self._wants_room = False
        for word in (PRODUCED_WORD, CONSUMED_WORD, WANTS_ROOM_WORD):
            self._store(word, 0)
        fence()

    def leave(self) -> None:
        self._incarnation = self._seen = 0
        self._store(INCARNATION_WORD, 0)
        fence()
        self._notify()

    def send(self, data: bytes) -> bool:
        if not HEADER.size <= len(data) <= SLOT_BYTES:
            raise UsageError(f"a message of {len(data)} bytes")
        self._check_open()
        if self._filled() == SLOTS:
            self._wants_room = True
            self._store(WANTS_ROOM_WORD, 1)
            fence()  # either we see what it has taken by now, or it sees that we want room
            if self._filled() == SLOTS:
                return False
        if self._wants_room:
            self._wants_room = False
            self._store(WANTS_ROOM_WORD, 0)
        slot = self._outgoing + self._produced % SLOTS * SLOT_BYTES
        for position, (word,) in enumerate(struct.iter_unpack("<Q", data.ljust((len(data) + 7) // 8 * 8, b"\0"))):
            store_u64(slot + 8 * position, word)
        self._produced = self._produced + 1 & 0xFFFFFFFF
        fence()
        self._store(PRODUCED_WORD, self._produced)
        fence()
        self._notify()
        return True

    def _filled(self) -> int:
        """How many messages lie in the outgoing ring."""
        filled = self._produced - self._load(self._theirs + CONSUMED_WORD) & 0xFFFFFFFF
        if filled > SLOTS:
            raise self._violation("has taken messages that were never sent")
        return filled

    def receive(self) -> bytes | None:
        self._check_open()
        waiting = self._load(self._theirs + PRODUCED_WORD) - self._consumed & 0xFFFFFFFF
        if waiting == 0:
            return None
        if waiting > SLOTS:
            raise self._violation(f"says that {waiting} messages lie in a ring of {SLOTS}")
        fence()
        slot = self._incoming + self._consumed % SLOTS * SLOT_BYTES
        first = load_u64(slot)
        size = first >> 48  # the last field of the header
        if not HEADER.size <= size <= SLOT_BYTES:
            raise self._violation(f"sent a message of {size} bytes")
        words = [load_u64(slot + offset) for offset in range(8, size, 8)]
        fence()
        self._consumed = self._consumed + 1 & 0xFFFFFFFF
        self._store(CONSUMED_WORD, self._consumed)
        fence()
        if self._load(self._theirs + WANTS_ROOM_WORD):
            self._notify()
        return struct.pack(f"<{1 + len(words)}Q", first, *words)[:size]

    def _check_open(self) -> None:
        state = self.state
        if state is not LinkState.OPEN:
            raise SessionLostError(f"no session with the other end: {state.value}")

    def _violation(self, what: str) -> PeerProtocolError:
        """The error for what cannot be. An end that has just started anew has set its indices back: no crime."""
        if self.state is not LinkState.OPEN:
            return SessionLostError("the other end has started anew")
        return PeerProtocolError(f"the other end {what}")

    def _load(self, address: int) -> int:
        return load_u32(address)

    def _store(self, word: int, value: int) -> None:
        store_u32(self._ours + word, value)
