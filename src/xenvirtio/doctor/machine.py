"""What the checks may look at: a tree of files, answers of probes, and a few numbers."""

from __future__ import annotations

import gzip
import os
import platform
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from pathlib import Path

from xenvirtio.channels.xenbus_device import KernelStore, kernel_store
from xenvirtio.doctor.answers import Answers
from xenvirtio.doctor.runner import run_probe
from xenvirtio.xenstore.connect import socket_paths

Prober = Callable[[str, Sequence[str]], Answers]

XENFEAT_DOM0 = 1 << 11
"""Source: xen/include/public/features.h."""


class DomainKind(Enum):
    """What this machine is to Xen."""

    NO_XEN = "no Xen"
    DOM0 = "dom0"
    DOMU = "domU"


@dataclass
class Machine:
    """This machine by default; a test gives a tree of its own and canned answers.

    `guest` is the guest to try IOREQ servers with: a domid or a name.
    """

    guest: str | None = None
    state_dir: Path = Path("/run/xenvirtio")
    root: Path = Path("/")
    probe: Prober = run_probe
    environment: Mapping[str, str] = field(default_factory=lambda: os.environ)
    architecture: str = field(default_factory=platform.machine)
    kernel_release: str = field(default_factory=platform.release)
    page_bytes: int = field(default_factory=lambda: os.sysconf("SC_PAGE_SIZE"))
    python_version: tuple[int, int, int] = sys.version_info[:3]
    free_bytes: Callable[[Path], int] = lambda path: shutil.disk_usage(path).free

    def path(self, absolute: str | Path) -> Path:
        """Where an absolute path of the machine is for us."""
        return self.root / str(absolute).lstrip("/")

    def text(self, absolute: str | Path) -> str | None:
        """Return a file's text without the white space around it; None when it cannot be read."""
        try:
            return self.path(absolute).read_text(errors="replace").strip()
        except OSError:
            return None

    @cached_property
    def domain_kind(self) -> DomainKind:
        if self.text("/sys/hypervisor/type") != "xen" and not self.path("/proc/xen").is_dir():
            return DomainKind.NO_XEN
        if "control_d" in (self.text("/proc/xen/capabilities") or ""):
            return DomainKind.DOM0
        features = self.text("/sys/hypervisor/properties/features") or "0"
        try:
            word = int(features[-8:], 16)
        except ValueError:
            word = 0
        return DomainKind.DOM0 if word & XENFEAT_DOM0 else DomainKind.DOMU

    @property
    def is_on_xen(self) -> bool:
        return self.domain_kind is not DomainKind.NO_XEN

    @property
    def is_dom0(self) -> bool:
        return self.domain_kind is DomainKind.DOM0

    @cached_property
    def xen_version(self) -> str | None:
        """Such as `4.20.4-pre`."""
        parts = [self.text(f"/sys/hypervisor/version/{part}") for part in ("major", "minor", "extra")]
        return f"{parts[0]}.{parts[1]}{parts[2] or ''}" if parts[0] and parts[1] else None

    @cached_property
    def kernel_store(self) -> KernelStore:
        return kernel_store(self.text("/proc/interrupts") or "")

    @property
    def may_open_devices(self) -> bool:
        """Is opening Xen's device nodes free of the trap: privcmd of a domU without XenStore blocks all of them?"""
        return self.is_dom0 or (self.is_on_xen and self.kernel_store is KernelStore.READY)

    @cached_property
    def kernel_options(self) -> dict[str, str] | None:
        """This kernel's configuration, `{"CONFIG_XEN": "y"}`; None where the kernel does not tell."""
        try:
            text = gzip.decompress(self.path("/proc/config.gz").read_bytes()).decode(errors="replace")
        except (OSError, EOFError):
            found = self.text(f"/boot/config-{self.kernel_release}") or self.text(
                f"/lib/modules/{self.kernel_release}/config"
            )
            if found is None:
                return None
            text = found
        return parse_options(text)

    @cached_property
    def kernel_arguments(self) -> list[str]:
        return (self.text("/proc/cmdline") or "").split()

    @cached_property
    def xenstore_sockets(self) -> list[Path]:
        return socket_paths(self.environment)

    @cached_property
    def nodes(self) -> Answers:
        """What opening the nodes below /dev/xen gave, privcmd excepted, and GRANT_COPY of gntdev."""
        if not self.may_open_devices:
            return Answers()
        return self.probe("nodes", [str(self.path("/dev/xen"))])

    @cached_property
    def privcmd(self) -> Answers:
        """What opening privcmd and asking it gave. After the others: when this hangs, so do they."""
        if not self.may_open_devices or self.nodes.hung:
            return Answers()
        return self.probe("privcmd", [str(self.path("/dev/xen"))])

    @cached_property
    def xen_options(self) -> dict[str, str] | None:
        """The configuration Xen was built with; only dom0 may read it, and only where Xen keeps it."""
        text = self.privcmd.value("xen_config")
        return None if text is None else parse_options(text)

    @cached_property
    def xenstore(self) -> Answers:
        """What XenStore told: `domid`, `target`, and `guest`, the domid of the guest asked for."""
        if not self.is_on_xen:
            return Answers()
        return self.probe("xenstore", [self.guest] if self.guest and not self.guest.isdecimal() else [])

    @cached_property
    def kernel(self) -> Answers:
        """Calls of the kernel that have nothing to do with Xen."""
        return self.probe("kernel", [])


def parse_options(text: str) -> dict[str, str]:
    """Read a Kconfig result; options that are off are absent."""
    return dict(line.split("=", 1) for line in text.splitlines() if line.startswith("CONFIG_") and "=" in line)
