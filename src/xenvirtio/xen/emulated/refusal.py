"""How the emulated Xen says no."""

from __future__ import annotations

import os


class Refusal(Exception):  # noqa: N818 - it is an answer, which the client turns into a HypervisorError
    """The errno that the hypercall or ioctl returns; `reason` is the line that Xen would log."""

    def __init__(self, error: int, reason: str = "") -> None:
        self.errno = error
        super().__init__(reason or os.strerror(error))
