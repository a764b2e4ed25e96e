"""Which frames of this domain lie under memory of this process."""

from __future__ import annotations

import io
import os
import struct

from xenvirtio.errors import ResourceError
from xenvirtio.ids import PAGE_SIZE, Gfn

PAGEMAP = "/proc/self/pagemap"
_ENTRY = struct.Struct("<Q")
_PRESENT = 1 << 63
_NUMBER = (1 << 55) - 1


def frames_of(address: int, count: int, pagemap: str = PAGEMAP) -> list[Gfn]:
    """Return the `count` frames (of Xen's 4 KiB) from `address` on, which is on a page and locked.

    The kernel's frame number is Xen's in a guest that Xen translates, which all but x86 PV are, and in Arm's dom0.

    Raises:
        ResourceError: a page is not there, or the kernel hides its number.

    Source: Linux Documentation/admin-guide/mm/pagemap.rst.
    """
    try:
        with open(pagemap, "rb", buffering=0) as file:
            return [_frame(file, address + index * PAGE_SIZE) for index in range(count)]
    except OSError as error:
        raise ResourceError(f"{pagemap}: {error.strerror}") from error


def _frame(pagemap: io.FileIO, address: int) -> Gfn:
    page_bytes = os.sysconf("SC_PAGE_SIZE")
    pagemap.seek(address // page_bytes * _ENTRY.size)
    entry = int.from_bytes(pagemap.read(_ENTRY.size), "little")
    if not entry & _PRESENT:
        raise ResourceError(f"pagemap: the page at {address:#x} is not in memory")
    if not entry & _NUMBER:
        raise ResourceError("pagemap hides frame numbers; that needs root (CAP_SYS_ADMIN)")
    return Gfn((entry & _NUMBER) * (page_bytes // PAGE_SIZE) + address % page_bytes // PAGE_SIZE)
