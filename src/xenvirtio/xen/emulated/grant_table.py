"""The grant table of one guest, version 1 entries in shared memory, and the checks Xen makes on them.

An entry is 8 bytes: flags u16, domid u16, frame u32. Xen sets READING and WRITING in it while a page is mapped and
clears them with the last unmapping; a guest cannot end the access before that.

Source: xen/include/public/grant_table.h, xen/common/grant_table.c (map_grant_ref, _set_status_v1).
"""

from __future__ import annotations

import errno
import mmap
import struct
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

from xenvirtio.ids import PAGE_SIZE, DomId, Gfn, GrantRef
from xenvirtio.xen.emulated.memory import GuestMemory
from xenvirtio.xen.emulated.rangeset import RangeSet

PERMIT_ACCESS = 1
TYPE_MASK = 3
READONLY = 1 << 2
READING = 1 << 3
WRITING = 1 << 4

FIRST_FREE = 8
"""Linux keeps references 0..7 for the console, XenStore and friends."""

MAX_FRAMES = 64
_ENTRY = struct.Struct("<HHI")
_PER_FRAME = PAGE_SIZE // _ENTRY.size


class GrantStatus(IntEnum):
    OKAY = 0
    GENERAL_ERROR = -1
    BAD_DOMAIN = -2
    BAD_GNTREF = -3
    PERMISSION_DENIED = -8
    BAD_PAGE = -9


@dataclass(slots=True)
class _Pins:
    readers: int = 0
    writers: int = 0


class GrantTable:
    """What the guest grants. Guest side: `allocate`, `end_access`; Xen side: `check`, `pin`, `unpin`."""

    def __init__(self, memory: GuestMemory) -> None:
        self._memory = memory
        self._lock = threading.Lock()
        self._entries = mmap.mmap(-1, MAX_FRAMES * PAGE_SIZE)
        self._frames = 1
        self._free = RangeSet()
        self._free.add(FIRST_FREE, MAX_FRAMES * _PER_FRAME - 1)
        self._pins: dict[GrantRef, _Pins] = {}

    # -- guest side

    def allocate(self, domid: DomId, frames: Sequence[Gfn], *, readonly: bool = False) -> GrantRef:
        """Grant frames to `domid` with consecutive references; return the first."""
        with self._lock:
            first = self._free.take_run(len(frames))
            if first is None:
                raise OSError(errno.ENOSPC, f"the grant table has no {len(frames)} consecutive free entries")
            self._frames = max(self._frames, (first + len(frames) - 1) // _PER_FRAME + 1)
            flags = PERMIT_ACCESS | (READONLY if readonly else 0)
            for number, gfn in enumerate(frames, first):
                self._write(GrantRef(number), flags, domid, gfn)
        return GrantRef(first)

    def end_access(self, reference: GrantRef) -> bool:
        """Take a grant back; False while somebody has it mapped.

        Linux then logs "Grant still in use by backend domain" and marks the device broken for good.
        """
        with self._lock:
            flags, _, _ = self.entry(reference)
            if flags & (READING | WRITING):
                return False
            self._write(reference, 0, DomId(0), Gfn(0))
            self._free.add(reference, reference)
        return True

    def entry(self, reference: GrantRef) -> tuple[int, DomId, Gfn]:
        """Return flags, domid and frame as they stand in the table."""
        flags, domid, frame = _ENTRY.unpack_from(self._entries, reference * _ENTRY.size)
        return flags, DomId(domid), Gfn(frame)

    def _write(self, reference: GrantRef, flags: int, domid: DomId, frame: Gfn) -> None:
        _ENTRY.pack_into(self._entries, reference * _ENTRY.size, flags, domid, frame)

    # -- Xen side

    def seed(self, reference: GrantRef, domid: DomId, frame: Gfn) -> None:
        """Grant one of the reserved references, as a domain builder does before the guest starts."""
        with self._lock:
            self._write(reference, PERMIT_ACCESS, domid, frame)

    def check(self, reference: GrantRef, domid: DomId, *, writable: bool) -> tuple[GrantStatus, int]:
        """Say whether `domid` may use a grant, and where its page lies in the guest's memfd."""
        if reference >= self._frames * _PER_FRAME:
            return GrantStatus.BAD_GNTREF, 0
        flags, granted_to, frame = self.entry(reference)
        if flags & TYPE_MASK != PERMIT_ACCESS or granted_to != domid or (writable and flags & READONLY):
            return GrantStatus.GENERAL_ERROR, 0
        offset = self._memory.offset_of_frame(frame)
        if offset is None:
            return GrantStatus.BAD_PAGE, 0
        return GrantStatus.OKAY, offset

    def pin(self, references: Sequence[GrantRef], domid: DomId, *, writable: bool) -> tuple[GrantStatus, list[int]]:
        """Map all of the references or none; return where their pages lie in the memfd."""
        offsets = []
        with self._lock:
            for reference in references:
                status, offset = self.check(reference, domid, writable=writable)
                if status != GrantStatus.OKAY:
                    return status, []
                offsets.append(offset)
            for reference in references:
                pins = self._pins.setdefault(reference, _Pins())
                pins.readers += 1
                pins.writers += writable
                self._show(reference, pins)
        return GrantStatus.OKAY, offsets

    def unpin(self, references: Sequence[GrantRef], *, writable: bool) -> None:
        with self._lock:
            for reference in references:
                pins = self._pins[reference]
                pins.readers -= 1
                pins.writers -= writable
                self._show(reference, pins)
                if not pins.readers:
                    del self._pins[reference]

    def _show(self, reference: GrantRef, pins: _Pins) -> None:
        flags, domid, frame = self.entry(reference)
        flags &= ~(READING | WRITING)
        flags |= (READING if pins.readers else 0) | (WRITING if pins.writers else 0)
        self._write(reference, flags, domid, frame)
