"""The XenStore ring of the kernel we run on, as xenfs shows it to a XenStore server in the same domain (dom0).

Source: Linux drivers/xen/xenfs/xenstored.c (6.12).
"""

from __future__ import annotations

import os
from pathlib import Path

from xenvirtio.errors import HypervisorError
from xenvirtio.ids import PAGE_SIZE, RemotePort
from xenvirtio.xen import libc
from xenvirtio.xen.mapping import OwnedMapping

DIRECTORY = Path("/proc/xen")
_HINT = "only dom0's kernel has it: mount -t xenfs xenfs /proc/xen"


def map_ring(directory: Path = DIRECTORY) -> OwnedMapping:
    """Map the page that the kernel shares with its XenStore server."""
    try:
        descriptor = os.open(directory / "xsd_kva", os.O_RDWR | os.O_CLOEXEC)
        try:
            address = libc.mmap(PAGE_SIZE, libc.protection(writable=True), libc.MAP_SHARED, descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise HypervisorError(f"map {directory}/xsd_kva", error.errno or 0, hint=_HINT) from error
    return OwnedMapping(address, PAGE_SIZE, lambda: libc.munmap(address, PAGE_SIZE))


def read_port(directory: Path = DIRECTORY) -> RemotePort:
    """Return the kernel's end of the event channel."""
    try:
        return RemotePort(int((directory / "xsd_port").read_text()))
    except OSError as error:
        raise HypervisorError(f"read {directory}/xsd_port", error.errno or 0, hint=_HINT) from error
