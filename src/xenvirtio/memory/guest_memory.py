"""What a device may ask of guest memory, whichever way it is reached."""

from __future__ import annotations

from xenvirtio.memory.transfer import TransferList


class GuestMemory:
    """Guest memory by DMA address, as one queue sees it. The base refuses everything.

    One object per queue thread: `run` is a result register, so two threads must not share it. What they do share
    (mapped regions, the grant device) stands behind it.

    All addresses and lengths come from the guest: implementations check every one, and a bad one is a failed entry
    or a 0, never an exception and never an access outside what the guest offered.
    """

    def __init__(self) -> None:
        self.run = 0

    def locate(self, address: int, length: int, writable: bool) -> int:
        """Return the host address of guest `address`, or 0 where it cannot be addressed in place.

        On success `run` holds how many bytes (1..length) lie contiguous from there. 0 means: go through `transfer`,
        which also finds out whether the guest gave us that memory at all.
        """
        self.run = 0
        return 0

    def transfer(self, copies: TransferList) -> int:
        """Carry out every copy of the list, mark those that failed; return how many did."""
        for index in range(copies.count):
            copies.fail(index)
        return copies.count
