"""XenStore through the kernel: `/dev/xen/xenbus`, the way of a domU.

Two traps, both seen on real Xen with dom0less guests: a write before XenStore is there kills it for this domain until
reboot (the kernel's thread dereferences a page that is not mapped), and poll says nothing about readiness. So the
device is opened only when `/proc/interrupts` shows that the kernel is connected. One write carries at most one message,
since the kernel drops what follows the first.
"""

from __future__ import annotations

import os
from enum import Enum
from pathlib import Path

DEVICE = Path("/dev/xen/xenbus")
INTERRUPTS = Path("/proc/interrupts")
_CHUNK_BYTES = 8192


class KernelStore(Enum):
    """What the kernel has of XenStore."""

    ABSENT = "no XenStore for this domain"
    LATE = "promised, not there yet"
    READY = "connected"


def kernel_store(interrupts: str) -> KernelStore:
    """Judge by the text of `/proc/interrupts`: the last word of a line names the handler."""
    handlers = {line.split()[-1] for line in interrupts.splitlines() if line.strip()}
    if "xenbus" in handlers:
        return KernelStore.READY
    return KernelStore.LATE if "xenstore_late_init" in handlers else KernelStore.ABSENT


def read_kernel_store(path: Path = INTERRUPTS) -> KernelStore:
    """Judge by the running kernel; ABSENT where there is nothing to read."""
    try:
        return kernel_store(path.read_text())
    except OSError:
        return KernelStore.ABSENT


class XenbusDevice:
    """The device as a channel. Open it only when `read_kernel_store` says READY."""

    message_max_bytes = 4096

    def __init__(self, path: Path = DEVICE) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)

    def fileno(self) -> int:
        return self._descriptor

    def send(self, message: bytes) -> int:
        try:
            return os.write(self._descriptor, message)
        except BlockingIOError:
            return 0

    def receive(self) -> bytes | None:
        try:
            return os.read(self._descriptor, _CHUNK_BYTES)
        except BlockingIOError:
            return b""

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
