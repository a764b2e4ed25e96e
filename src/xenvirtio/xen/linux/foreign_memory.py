"""Foreign frames through privcmd. Not usable for O_DIRECT (EFAULT); buffered I/O and memcpy work."""

from __future__ import annotations

from collections.abc import Sequence

from xenvirtio.errors import UsageError
from xenvirtio.ids import PAGE_SIZE, DomId, Gfn
from xenvirtio.xen import libc
from xenvirtio.xen.linux.privcmd import Privcmd
from xenvirtio.xen.mapping import OwnedMapping


class LinuxForeignMemory:
    """`ForeignMemory` over one privcmd descriptor, for the one domain it was opened for."""

    def __init__(self, privcmd: Privcmd) -> None:
        self._privcmd = privcmd

    def map_frames(self, domid: DomId, frames: Sequence[Gfn], *, writable: bool) -> tuple[OwnedMapping, list[int]]:
        if domid != self._privcmd.domid or not frames:
            raise UsageError(f"{len(frames)} frames of domain {domid} through privcmd of domain {self._privcmd.domid}")
        address, errors = self._privcmd.map_frames(frames, writable=writable)
        length = len(frames) * PAGE_SIZE  # always unmapped whole: the kernel forbids splitting
        return OwnedMapping(address, length, lambda: libc.munmap(address, length)), errors

    def close(self) -> None:
        self._privcmd.close()
