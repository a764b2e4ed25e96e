"""Guest memory where each address says itself how it is reached: bit 63 means a grant.

The choice is per address, never per process: a driver may hand over both kinds, and one that hands over a kind the
backend cannot reach gets a failed request, nothing more.
"""

from __future__ import annotations

from xenvirtio.ids import GRANT_BIT
from xenvirtio.memory.guest_memory import GuestMemory
from xenvirtio.memory.transfer import TransferList


class AddressSpace(GuestMemory):
    """`plain` for guest-physical addresses, `granted` for grant references."""

    def __init__(self, plain: GuestMemory, granted: GuestMemory) -> None:
        self.run = 0
        self._plain = plain
        self._granted = granted
        self._plain_part = TransferList()
        self._granted_part = TransferList()

    def locate(self, address: int, length: int, writable: bool) -> int:
        side = self._granted if address >= GRANT_BIT else self._plain
        place = side.locate(address, length, writable)
        self.run = side.run
        return place

    def transfer(self, copies: TransferList) -> int:
        granted = 0
        for index in range(copies.count):
            if copies.guest[index] >= GRANT_BIT:
                granted += 1
        if granted == copies.count:
            return self._granted.transfer(copies)
        if granted == 0:
            return self._plain.transfer(copies)
        return self._transfer_mixed(copies)

    def _transfer_mixed(self, copies: TransferList) -> int:
        self._plain_part.clear()
        self._granted_part.clear()
        for index in range(copies.count):
            part = self._granted_part if copies.guest[index] >= GRANT_BIT else self._plain_part
            part.add(copies.guest[index], copies.host[index], copies.length[index], copies.to_guest[index] != 0)
        failures = self._plain.transfer(self._plain_part) + self._granted.transfer(self._granted_part)
        if failures:
            plain = 0
            granted = 0
            for index in range(copies.count):
                if copies.guest[index] >= GRANT_BIT:
                    copies.failed[index] = self._granted_part.failed[granted]
                    granted += 1
                else:
                    copies.failed[index] = self._plain_part.failed[plain]
                    plain += 1
        return failures
