"""Which way to XenStore this machine has.

The Unix socket comes first (dom0), then the kernel's device (domU), and that only once the kernel is connected.

Source: libxenstore's order; `XENSTORED_PATH` may name a socket or a device.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Mapping
from pathlib import Path

from xenvirtio.channels import Channel
from xenvirtio.channels.unix_socket import UnixSocketChannel
from xenvirtio.channels.xenbus_device import DEVICE, KernelStore, XenbusDevice, read_kernel_store

Connector = Callable[[], Channel | None]
"""Return a channel, or None while there is no XenStore to talk to. Called again and again until there is."""


def socket_paths(environment: Mapping[str, str]) -> list[Path]:
    """Return where the server's socket may be, best first."""
    if chosen := environment.get("XENSTORED_PATH"):
        return [Path(chosen)]
    if directory := environment.get("XENSTORED_RUNDIR"):
        return [Path(directory) / "socket"]
    return [Path("/run/xenstored/socket"), Path("/var/run/xenstored/socket")]


def connect_path(path: str | Path) -> Channel | None:
    """Connect to a socket or a device; None when there is nobody, or the kernel is not ready."""
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISSOCK(mode):
            return UnixSocketChannel.connect(path)
        return XenbusDevice(Path(path)) if read_kernel_store() is KernelStore.READY else None
    except (OSError, ValueError):  # a NUL in the path is a ValueError
        return None


def connect_default() -> Channel | None:
    """Connect the best way there is."""
    for path in socket_paths(os.environ):
        channel = connect_path(path)
        if channel is not None:
            return channel
    return None if "XENSTORED_PATH" in os.environ else connect_path(DEVICE)
