"""The programs of this machine that the lab needs, and the Debian packages they come in."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from xenvirtio.errors import ConfigurationError
from xenvirtio.lab.paths import cache_root
from xenvirtio.lab.process import run_logged

_SEARCHED = os.pathsep.join((os.environ.get("PATH", ""), "/usr/local/sbin", "/usr/sbin", "/sbin"))


@dataclass(frozen=True, slots=True)
class HostTool:
    """Something the lab needs: how it is called, the Debian package that has it, and what it is for."""

    name: str
    package: str
    purpose: str
    is_file: bool = False

    def is_present(self) -> bool:
        """Whether this machine has it."""
        if self.is_file:
            return any(Path(folder, self.name).exists() for folder in ("/usr/include", "/usr/include/x86_64-linux-gnu"))
        return shutil.which(self.name, path=_SEARCHED) is not None


HOST_TOOLS = (
    HostTool("qemu-system-aarch64", "qemu-system-arm", "emulates the machine"),
    HostTool("aarch64-linux-gnu-gcc", "gcc-aarch64-linux-gnu", "builds Xen, Linux and the engine"),
    HostTool("aarch64-linux-gnu-ld", "binutils-aarch64-linux-gnu", "builds Xen and Linux"),
    HostTool("../aarch64-linux-gnu/include/stdio.h", "libc6-dev-arm64-cross", "builds guest programs", is_file=True),
    HostTool("gcc", "gcc", "builds the kernel's own build tools"),
    HostTool("make", "make", "builds Xen and Linux"),
    HostTool("flex", "flex", "builds the kernel's configuration program"),
    HostTool("bison", "bison", "builds the kernel's configuration program"),
    HostTool("bc", "bc", "builds Linux"),
    HostTool("perl", "perl", "builds Linux"),
    HostTool("openssl/ssl.h", "libssl-dev", "builds Linux", is_file=True),
    HostTool("libelf.h", "libelf-dev", "builds Linux", is_file=True),
    HostTool("dtc", "device-tree-compiler", "compiles the trees of static systems"),
    HostTool("xz", "xz-utils", "unpacks sources"),
    HostTool("tar", "tar", "unpacks packages"),
    HostTool("mke2fs", "e2fsprogs", "makes disk images"),
    HostTool("apt-get", "apt", "downloads Debian packages"),
    HostTool("dpkg-deb", "dpkg", "unpacks Debian packages"),
)

_PYTHON_MODULES = {"qemu.qmp": "drives QEMU", "pexpect": "drives consoles", "libfdt": "reads the machine's device tree"}


def missing_tools() -> list[HostTool]:
    """What this machine lacks, in the order of `HOST_TOOLS`."""
    return [tool for tool in HOST_TOOLS if not tool.is_present()]


def check_host_tools() -> None:
    """See that everything is there.

    Raises:
        ConfigurationError: with a line for each missing program that names its Debian package.
    """
    missing = missing_tools()
    if missing:
        lines = "".join(
            f"\n  {Path(tool.name).name}: Debian package {tool.package} ({tool.purpose})" for tool in missing
        )
        packages = " ".join(sorted({tool.package for tool in missing}))
        raise ConfigurationError(
            "lab",
            f"this machine lacks {len(missing)} of the programs the lab needs:{lines}\n",
            f"install them with 'xenvirtio lab build --install-tools' as root, or with 'apt-get install {packages}'",
        )
    absent = [name for name in _PYTHON_MODULES if not _has_module(name)]
    if absent:
        raise ConfigurationError("lab", f"Python lacks {', '.join(absent)}", "pip install 'xenvirtio[lab]'")


def install_host_tools(progress: Callable[[str], None]) -> None:
    """Install what is missing with apt-get.

    Raises:
        ConfigurationError: not root. ResourceError: apt-get failed.
    """
    packages = sorted({tool.package for tool in missing_tools()})
    if not packages:
        return
    if os.geteuid() != 0:
        raise ConfigurationError("lab", "--install-tools needs root", f"as root: apt-get install {' '.join(packages)}")
    progress(f"installing {' '.join(packages)}")
    log = cache_root() / "host-tools.log"
    environment = {"DEBIAN_FRONTEND": "noninteractive"}
    run_logged("fetching package lists", ["apt-get", "update", "-q"], log, env=environment)
    command = ["apt-get", "install", "-q", "--yes", "--no-install-recommends", *packages]
    run_logged("installing host tools", command, log, env=environment)


def _has_module(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:
        return False
