"""Which way to XenStore this machine has, and whether it leads anywhere yet.

The Unix socket comes first (dom0), then the kernel's device (domU), and that only once the kernel is connected.

A XenStore is ABSENT (this domain will never have one), LATE (promised: a dom0less domain starts before the control
domain has introduced it, or a server named by its path is not running) or READY. Nothing here opens the device before
READY, and nothing opens privcmd, which in a guest without XenStore would hang and take every other node along.

Source: libxenstore's order; `XENSTORED_PATH` may name a socket or a device.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from xenvirtio.channels import Channel
from xenvirtio.channels.unix_socket import UnixSocketChannel
from xenvirtio.channels.xenbus_device import DEVICE, INTERRUPTS, KernelStore, XenbusDevice, read_kernel_store

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


@dataclass(frozen=True, slots=True)
class Presence:
    """The state, and in a few words how it is known."""

    state: KernelStore
    reason: str


def look(path: Path | None = None, environment: Mapping[str, str] | None = None, root: Path = Path("/")) -> Presence:
    """Look what there is of XenStore: at `path`, which may be a socket or a device, or where libxenstore would."""
    environment = os.environ if environment is None else environment
    paths = [path] if path is not None else socket_paths(environment)
    for candidate in paths:
        if _is_listening(candidate):
            return Presence(KernelStore.READY, f"a server listens at {candidate}")
    if path is not None or "XENSTORED_PATH" in environment:
        return _look_at_named(paths[0], root)
    return _look_at_kernel(root)


def _look_at_named(path: Path, root: Path) -> Presence:
    if not path.exists():
        return Presence(KernelStore.LATE, f"there is no {path}")
    if path.is_socket():
        return Presence(KernelStore.LATE, f"nobody listens at {path}")
    return _look_at_kernel(root)


def _look_at_kernel(root: Path) -> Presence:
    state = read_kernel_store(root / INTERRUPTS.relative_to("/"))
    if state is KernelStore.READY:
        return Presence(state, "the kernel is connected")
    if state is KernelStore.LATE:
        return Presence(state, "the kernel waits for the control domain to introduce this one")
    if (root / "proc/xen").is_dir() or (root / "sys/hypervisor/type").exists():
        return Presence(state, "this domain was made without one (dom0less: no xen,enhanced, or no-xenstore)")
    return Presence(state, "this machine does not run on Xen, and no server listens at /run/xenstored/socket")


def _is_listening(path: Path) -> bool:
    try:
        UnixSocketChannel.connect(path).close()
    except OSError:
        return False
    return True


def connect_default() -> Channel | None:
    """Connect the best way there is."""
    for path in socket_paths(os.environ):
        channel = connect_path(path)
        if channel is not None:
            return channel
    return None if "XENSTORED_PATH" in os.environ else connect_path(DEVICE)
