"""One open device node below /dev/xen."""

from __future__ import annotations

import ctypes
import os
import threading

from xenvirtio.xen import libc
from xenvirtio.xen.hints import hypervisor_error, open_error


class Node:
    """A descriptor with ioctls whose failures name the operation. `close` may be called twice."""

    def __init__(self, path: str, flags: int = 0) -> None:
        self._lock = threading.Lock()
        self._closed = False
        try:
            self.descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | flags)
        except OSError as error:
            raise open_error(path, error.errno or 0) from error

    def ioctl(
        self,
        operation: str,
        request: int,
        argument: ctypes.Structure | ctypes.Array[ctypes.c_char],
        domid: int | None = None,
    ) -> int:
        """Run an ioctl.

        Raises:
            HypervisorError: it was refused; names `operation` and `domid`.
        """
        try:
            return libc.ioctl(self.descriptor, request, ctypes.addressof(argument))
        except OSError as error:
            raise hypervisor_error(operation, error.errno or 0, domid) from error

    def close(self) -> None:
        with self._lock:
            closed, self._closed = self._closed, True
        if not closed:
            os.close(self.descriptor)
