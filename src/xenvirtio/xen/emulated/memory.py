"""The RAM of one guest: a memfd, so that compiled code works on it by address and a backend process can map it."""

from __future__ import annotations

import ctypes
import errno
import os
import threading
import weakref
from dataclasses import dataclass

from xenvirtio.errors import UsageError
from xenvirtio.ids import PAGE_SIZE, Gfn
from xenvirtio.xen import libc
from xenvirtio.xen.emulated.rangeset import RangeSet

RAM_BANKS = ((0x4000_0000, 0xC000_0000), (0x2_0000_0000, 0xFE_0000_0000))
"""Guest-physical start and greatest length of each bank.

Source: xen/include/public/arch-arm.h, GUEST_RAM0_BASE and GUEST_RAM1_BASE.
"""

MAGIC_BANK = (0x3900_0000, 16 * PAGE_SIZE)
"""Where pages lie that the guest shares with XenStore and friends; empty until somebody populates it.

Source: xen/include/public/arch-arm.h, GUEST_MAGIC_BASE.
"""


@dataclass(frozen=True, slots=True)
class MemoryBank:
    start: int
    length_bytes: int
    offset: int
    """Where the bank lies in the memfd."""


class GuestMemory:
    """Guest RAM, seen by the guest's own side: bytes by guest-physical address, and a page allocator.

    The host mapping stays for as long as this object lives, also after the domain has died: a guest thread that is
    late finds stale bytes and no segmentation fault.
    """

    def __init__(self, length_bytes: int) -> None:
        if length_bytes <= 0 or length_bytes % PAGE_SIZE:
            raise UsageError(f"guest memory of {length_bytes} bytes")
        ram_banks = _lay_out(length_bytes)
        self.banks = (*ram_banks, MemoryBank(*MAGIC_BANK, offset=length_bytes))
        self.ram_pages = length_bytes // PAGE_SIZE
        length_bytes += MAGIC_BANK[1]
        self.length_bytes = length_bytes
        self.descriptor = os.memfd_create("xen-guest", os.MFD_CLOEXEC)
        os.ftruncate(self.descriptor, length_bytes)
        flags = libc.MAP_SHARED | libc.MAP_NORESERVE
        self.address = libc.mmap(length_bytes, libc.protection(writable=True), flags, self.descriptor)
        self._finalizer = weakref.finalize(self, _release, self.descriptor, self.address, length_bytes)
        self._lock = threading.Lock()
        first_magic = MAGIC_BANK[0] // PAGE_SIZE
        self._removed = {Gfn(first_magic + i) for i in range(MAGIC_BANK[1] // PAGE_SIZE)}
        self._free = RangeSet()
        for bank in ram_banks:
            first = bank.start // PAGE_SIZE
            self._free.add(first, first + bank.length_bytes // PAGE_SIZE - 1)

    def offset_of_frame(self, gfn: Gfn) -> int | None:
        """Return where a frame lies in the memfd, or None where the guest has no RAM."""
        if gfn in self._removed:
            return None
        address = gfn * PAGE_SIZE
        for bank in self.banks:
            if bank.start <= address < bank.start + bank.length_bytes:
                return bank.offset + address - bank.start
        return None

    def host_address(self, address: int, length_bytes: int = 1) -> int:
        """Return where guest-physical [address, address + length_bytes) lies in this process."""
        for bank in self.banks:
            if bank.start <= address and address + length_bytes <= bank.start + bank.length_bytes:
                return self.address + bank.offset + address - bank.start
        raise UsageError(f"guest-physical {address:#x}+{length_bytes} is not RAM")

    def read(self, address: int, length_bytes: int) -> bytes:
        return ctypes.string_at(self.host_address(address, length_bytes), length_bytes)

    def write(self, address: int, data: bytes) -> None:
        ctypes.memmove(self.host_address(address, len(data)), data, len(data))

    def allocate_pages(self, count: int = 1) -> Gfn:
        """Take `count` consecutive free frames; return the first."""
        with self._lock:
            first = self._free.take_run(count)
        if first is None:
            raise OSError(errno.ENOMEM, f"the guest has no {count} consecutive free pages")
        return Gfn(first)

    def free_pages(self, first: Gfn, count: int = 1) -> None:
        with self._lock:
            self._free.add(first, first + count - 1)

    def remove_page(self, gfn: Gfn) -> None:
        """Give a page back to Xen, as a balloon driver does; `Vcpu.invalidate` belongs to it."""
        self._removed.add(gfn)

    def populate_page(self, gfn: Gfn) -> bool:
        """Give the guest a page where it may have one and has none; False otherwise."""
        if gfn not in self._removed:
            return False
        self.restore_page(gfn)
        return True

    def restore_page(self, gfn: Gfn) -> None:
        self._removed.discard(gfn)


def _lay_out(length_bytes: int) -> tuple[MemoryBank, ...]:
    banks = []
    offset = 0
    for start, limit in RAM_BANKS:
        length = min(length_bytes - offset, limit)
        if length:
            banks.append(MemoryBank(start, length, offset))
        offset += length
    return tuple(banks)


def _release(descriptor: int, address: int, length_bytes: int) -> None:
    libc.munmap(address, length_bytes)
    os.close(descriptor)
