"""Xen for arm64 with IOREQ servers, which Debian's own binary lacks (they hide behind CONFIG_EXPERT)."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from xenvirtio.lab.apt import open_archive
from xenvirtio.lab.artifacts.kconfig import FRAGMENTS, check_options
from xenvirtio.lab.paths import artifact, key_of
from xenvirtio.lab.process import jobs, run_logged

_RECIPE = "1"
_FRAGMENT = FRAGMENTS / "xen-arm64.fragment"


def build_xen() -> Path:
    """The hypervisor's image, `xen`, with its configuration `xen.config` beside it."""
    return artifact("xen", key_of(_RECIPE, _FRAGMENT), _build) / "xen"


def _build(result: Path, scratch: Path) -> None:
    log = scratch / "build.log"
    # The upstream tarball is enough; Debian's patches concern packaging.
    tarball = open_archive().source_file("xen", r"^xen_[^/]*\.orig\.tar\.xz$")
    run_logged("unpacking Xen", ["tar", "-xf", tarball, "-C", scratch, "--strip-components=1"], log)
    shutil.copy(_FRAGMENT, scratch / "xen/arch/arm/configs/xenvirtio_defconfig")
    make = ["make", "-C", str(scratch / "xen"), "XEN_TARGET_ARCH=arm64", "CROSS_COMPILE=aarch64-linux-gnu-"]
    run_logged("configuring Xen", [*make, "KBUILD_DEFCONFIG=xenvirtio_defconfig", "defconfig"], log)
    config = scratch / "xen/.config"
    check_options("Xen", config, _FRAGMENT)
    run_logged("building Xen", [*make, f"-j{jobs()}"], log)
    shutil.copy(scratch / "xen/xen", result / "xen")
    shutil.copy(config, result / "xen.config")
    version = re.sub(r"^xen_|\.orig\.tar\.xz$", "", tarball.name)
    (result / "version").write_text(f"{version}\n")
