"""One process for each static event channel of this domain.

Linux accepts a second binding of a static port through another descriptor; closing that one then takes the interrupt
away under the first, and closing the first stops the kernel (`BUG_ON(irq < 0)` in drivers/xen/evtchn.c; seen on 6.12).
So whoever binds takes a lock before, and gives it up after the kernel has let go of the port. The lock ends with its
process, however that ends.
"""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

from xenvirtio.errors import HypervisorError, ResourceError

LOCK_DIRECTORY = Path("/run/xenvirtio/static-ports")


class StaticPortLock:
    """The lock of `port`, taken by the constructor.

    Raises:
        HypervisorError: EBUSY, another process has it.
        ResourceError: there is no place for the lock; binding without it would be dangerous.
    """

    def __init__(self, port: int, directory: Path | None = None) -> None:
        directory = LOCK_DIRECTORY if directory is None else directory
        path = directory / str(port)
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ResourceError(f"{path}: {error.strerror}: the lock of static port {port} needs this file") from error
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(self._descriptor, 32, 0).decode(errors="replace").strip() or "?"
            os.close(self._descriptor)
            hint = f"process {holder} uses it; a second user of a static port can stop this kernel"
            raise HypervisorError(f"bind static event channel {port}", errno.EBUSY, hint=hint) from error
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        os.close(self._descriptor)
