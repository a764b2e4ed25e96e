"""What a lab machine boots from, how big it is, and what its dom0 starts."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from xenvirtio.lab.built_system import BuiltSystem


class XenStoreChoice(Enum):
    """What dom0's init starts of Xen's daemons; the value of `lab.xenstore=` on dom0's kernel command line."""

    C = "c"
    """Debian's C xenstored, xen-init-dom0, xenconsoled."""

    OURS = "ours"
    """`xenvirtio store serve --xen` in xenstored's place, then xen-init-dom0, xenconsoled. Log: /run/lab/store.log."""

    NONE = "none"
    """Nothing: dom0 is Linux and our package, as `xenvirtio control` finds it."""


class Dom0Root(Enum):
    """Which root dom0 has."""

    FULL = "full"
    """With Xen's tools: xl, xenstored, xenstore-*, libxenctrl."""

    LIGHT = "light"
    """Python, busybox, e2fsprogs, strace, and not one file of Xen's tools."""


@dataclass(frozen=True, slots=True)
class Images:
    """What a machine boots from; see `build.build_images`."""

    xen: Path
    linux: Path
    root: Path
    guests: Path
    package: Path


@dataclass(frozen=True, slots=True)
class MachineOptions:
    """The size of a machine, what its dom0 is, and additions to the two command lines.

    With `system`, what `xenvirtio static build` wrote is booted. Then Xen's and dom0's command lines are those of the
    description, where `DOM0_ARGUMENTS` and `lab.xenstore=` belong; the arguments and dom0 sizes here mean nothing.
    """

    memory_mib: int = 3072
    dom0_memory_mib: int = 768
    processors: int = 2
    dom0_processors: int = 2
    xen_arguments: str = ""
    linux_arguments: str = ""
    root: Dom0Root = Dom0Root.FULL
    xenstore: XenStoreChoice = XenStoreChoice.C
    system: BuiltSystem | None = None

    def hypervisor_arguments(self) -> str:
        """Xen's command line."""
        fixed = f"dom0_mem={self.dom0_memory_mib}M dom0_max_vcpus={self.dom0_processors} console=dtuart noreboot"
        return f"{fixed} {self.xen_arguments}".strip()

    def dom0_arguments(self) -> str:
        """dom0's kernel command line."""
        fixed = f"{DOM0_ARGUMENTS} lab.xenstore={self.xenstore.value}"
        return f"{fixed} {self.linux_arguments}".strip()


DOM0_ARGUMENTS = "root=/dev/vda rw init=/init console=hvc0 quiet loglevel=4"
"""What dom0's kernel needs to find its root in the lab; a system.toml for the lab gives them to its dom0."""
