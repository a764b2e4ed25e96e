"""Argo as Xen does it: rings of all domains, and the copying into them.

Refusals and their order, the slot that stays free, whom a notify wakes: all as `xen/common/argo.c` (4.20) has it and as
it was seen through Linux. When a domain ends, its rings go and so do those that others keep for it.

Softer than the real thing: when a process ends, its rings go with it, as the keeper of `xen.linux.argo` sees to; and
they are memory of the file it passed, so that nothing else can be overwritten.
"""

from __future__ import annotations

import errno
import mmap
import struct
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from xenvirtio.ids import ArgoPort, DomId
from xenvirtio.xen.argo_abi import (
    HEADER,
    NOTIFY_MAX,
    PENDING_PER_RING,
    RING_DATA_OFFSET,
    RING_MAX_BYTES,
    RING_MIN_BYTES,
    RINGS_PER_DOMAIN,
    RX_OFFSET,
    SLOT_BYTES,
    TX_OFFSET,
    NotifyFlag,
    ring_pages,
    round_to_slots,
)
from xenvirtio.xen.capabilities import VIRQ_ARGO
from xenvirtio.xen.emulated.refusal import Refusal

ANY = DomId(0x7FF4)
"""The partner of a ring that everybody may send to; only with `mac-permissive`."""

Key = tuple[DomId, ArgoPort, DomId]
"""Owner, port and partner of a ring."""

_WORD = struct.Struct("<I")
_HEADER_BYTES = HEADER.size


@dataclass(slots=True, eq=False)
class _Ring:
    """One registered ring. Xen trusts its own `tx`, never the one in the page."""

    length_bytes: int
    memory: mmap.mmap
    tx: int = 0
    pending: dict[DomId, int] = field(default_factory=dict)
    """Who waits for room, and for how many bytes."""

    def rx(self) -> int:
        """The owner's pointer made safe: on a slot, and inside the ring."""
        rx: int = _WORD.unpack_from(self.memory, RX_OFFSET)[0]
        rx = round_to_slots(rx)
        return 0 if rx >= self.length_bytes else rx

    @property
    def message_max_bytes(self) -> int:
        return self.length_bytes - _HEADER_BYTES - SLOT_BYTES

    def free(self) -> int:
        return (self.rx() - self.tx) % self.length_bytes or self.length_bytes

    def room(self) -> int:
        """How long a message may be now: one slot stays free, so that a full ring does not look empty."""
        return max(0, self.free() - _HEADER_BYTES - SLOT_BYTES)

    def insert(self, message: bytes) -> None:
        """Write a message, header included, and then say so."""
        padded = message + bytes(round_to_slots(len(message)) - len(message))
        first = padded[: self.length_bytes - self.tx]
        start = RING_DATA_OFFSET + self.tx
        self.memory[start : start + len(first)] = first
        rest = padded[len(first) :]
        self.memory[RING_DATA_OFFSET : RING_DATA_OFFSET + len(rest)] = rest
        self.tx = (self.tx + len(padded)) % self.length_bytes
        _WORD.pack_into(self.memory, TX_OFFSET, self.tx)


class ArgoSwitch:
    """All rings of a host. `is_enabled` is Xen's `argo=1`, `is_permissive` its `mac-permissive=1`."""

    def __init__(
        self,
        exists: Callable[[DomId], bool],
        is_allowed: Callable[[DomId, DomId], bool],
        raise_virq: Callable[[DomId, int], None],
        *,
        is_enabled: bool = True,
        is_permissive: bool = False,
    ) -> None:
        self._exists = exists
        self._is_allowed = is_allowed
        self._raise_virq = raise_virq
        self._is_enabled = is_enabled
        self._is_permissive = is_permissive
        self._rings: dict[Key, _Ring] = {}
        self._lock = threading.Lock()

    def register(
        self, owner: DomId, port: ArgoPort, partner: DomId, length_bytes: int, descriptor: int, pages: int
    ) -> None:
        """Register a ring whose `pages` pages are the file at `descriptor`; always as with FAIL_EXIST."""
        self._check_enabled()
        if (
            not RING_MIN_BYTES <= length_bytes <= RING_MAX_BYTES
            or length_bytes % SLOT_BYTES
            or pages != ring_pages(length_bytes)
        ):
            raise Refusal(errno.EINVAL)
        with self._lock:
            if partner == ANY and not self._is_permissive:
                raise Refusal(errno.EPERM)
            if partner != ANY:
                self._check_peer(owner, partner)
            if sum(key[0] == owner for key in self._rings) >= RINGS_PER_DOMAIN:
                raise Refusal(errno.ENOSPC)
            if (owner, port, partner) in self._rings:
                raise Refusal(errno.EEXIST)
            memory = mmap.mmap(descriptor, pages * mmap.PAGESIZE)
            ring = _Ring(length_bytes, memory)
            tx: int = _WORD.unpack_from(memory, TX_OFFSET)[0]
            ring.tx = tx if tx < length_bytes and tx % SLOT_BYTES == 0 else ring.rx()
            self._rings[owner, port, partner] = ring

    def unregister(self, owner: DomId, port: ArgoPort, partner: DomId) -> None:
        self._check_enabled()
        with self._lock:
            if (owner, port, partner) not in self._rings:
                raise Refusal(errno.ENOENT)
            self._drop((owner, port, partner))

    def send(
        self, source: DomId, source_port: ArgoPort, to: DomId, to_port: ArgoPort, kind: int, message: bytes
    ) -> None:
        self._check_enabled()
        with self._lock:
            self._check_peer(source, to)
            ring = self._find(to, to_port, source)
            if ring is None:
                raise Refusal(errno.ECONNREFUSED)
            if _HEADER_BYTES + round_to_slots(len(message)) >= ring.length_bytes:
                raise Refusal(errno.EMSGSIZE)
            if _HEADER_BYTES + round_to_slots(len(message)) >= ring.free():
                self._queue(ring, source, len(message))
                raise Refusal(errno.EAGAIN)
            header = HEADER.pack(len(message) + _HEADER_BYTES, source_port, source, 0, kind)
            ring.insert(header + message)
        self._raise_virq(to, VIRQ_ARGO)

    def notify(self, asker: DomId, asked: Sequence[tuple[DomId, ArgoPort, int]]) -> list[tuple[int, int]]:
        """Wake who waits for the asker's rings; answer flags and the longest message for each ring asked about."""
        self._check_enabled()
        with self._lock:
            woken = [waiter for key, ring in self._rings.items() if key[0] == asker for waiter in self._satisfied(ring)]
            if len(asked) > NOTIFY_MAX:
                raise Refusal(errno.EACCES)
            answers = [self._describe(asker, *entry) for entry in asked]
        for waiter in woken:
            self._raise_virq(waiter, VIRQ_ARGO)
        return answers

    def remove_domain(self, domid: DomId) -> None:
        """A domain ends: its rings, those kept for it, and what it waits for."""
        with self._lock:
            for key in [key for key in self._rings if domid in (key[0], key[2])]:
                self._drop(key)
            for ring in self._rings.values():
                ring.pending.pop(domid, None)

    # -- with the lock held

    def _check_enabled(self) -> None:
        if not self._is_enabled:
            raise Refusal(errno.EOPNOTSUPP, "argo is not on Xen's command line")

    def _check_peer(self, domid: DomId, peer: DomId) -> None:
        if not self._exists(peer):
            raise Refusal(errno.ESRCH)
        if domid != peer and not self._is_allowed(domid, peer):
            raise Refusal(errno.EPERM, "XSM")

    def _find(self, owner: DomId, port: ArgoPort, sender: DomId) -> _Ring | None:
        return self._rings.get((owner, port, sender)) or self._rings.get((owner, port, ANY))

    def _drop(self, key: Key) -> None:
        self._rings.pop(key).memory.close()

    def _queue(self, ring: _Ring, waiter: DomId, length_bytes: int) -> None:
        if waiter not in ring.pending and len(ring.pending) >= PENDING_PER_RING:
            raise Refusal(errno.EBUSY)
        ring.pending[waiter] = max(length_bytes, ring.pending.get(waiter, 0))

    def _satisfied(self, ring: _Ring) -> list[DomId]:
        room = ring.room()
        waiters = [waiter for waiter, length_bytes in ring.pending.items() if room and room >= length_bytes]
        for waiter in waiters:
            del ring.pending[waiter]
        return waiters

    def _describe(self, asker: DomId, owner: DomId, port: ArgoPort, wanted_bytes: int) -> tuple[int, int]:
        if not self._exists(owner):
            return 0, 0
        if asker != owner and not self._is_allowed(asker, owner):
            raise Refusal(errno.EPERM, "XSM")
        ring = self._find(owner, port, asker)
        if ring is None:
            return 0, 0
        flags, room = NotifyFlag.EXISTS, ring.room()
        if (owner, port, asker) not in self._rings:
            flags |= NotifyFlag.SHARED
        if wanted_bytes > ring.message_max_bytes:
            flags |= NotifyFlag.EMSGSIZE
        elif room >= wanted_bytes:
            ring.pending.pop(asker, None)
            flags |= NotifyFlag.SUFFICIENT
        else:
            try:
                self._queue(ring, asker, wanted_bytes)
            except Refusal:
                flags |= NotifyFlag.EBUSY
        if room == ring.message_max_bytes:
            flags |= NotifyFlag.EMPTY
        return int(flags), ring.message_max_bytes
