"""The Linux of dom0 and of our own guests: one arm64 image without modules, with CONFIG_XEN_VIRTIO."""

from __future__ import annotations

import shutil
from pathlib import Path

from xenvirtio.lab.apt import open_archive, unpack
from xenvirtio.lab.artifacts.kconfig import FRAGMENTS, check_options
from xenvirtio.lab.paths import artifact, key_of
from xenvirtio.lab.process import jobs, run_logged

_RECIPE = "1"
_PACKAGE = "linux-source-6.12"
_FRAGMENT = FRAGMENTS / "linux-arm64.fragment"


def build_linux() -> Path:
    """The kernel image, `Image`, with its configuration `Image.config` beside it."""
    return artifact("linux", key_of(_RECIPE, _FRAGMENT), _build) / "Image"


def _build(result: Path, scratch: Path) -> None:
    log = scratch / "build.log"
    (package,) = open_archive().download([_PACKAGE], closure=False)
    unpack(package, scratch / "package", log)
    tarball = scratch / "package/usr/src" / f"{_PACKAGE}.tar.xz"
    source = scratch / "source"
    source.mkdir()
    run_logged("unpacking Linux", ["tar", "-xf", tarball, "-C", source, "--strip-components=1"], log)
    make = ["make", "-C", str(source), "ARCH=arm64", "CROSS_COMPILE=aarch64-linux-gnu-"]
    run_logged("configuring Linux", [*make, f"KCONFIG_ALLCONFIG={_FRAGMENT}", "allnoconfig"], log)
    check_options("Linux", source / ".config", _FRAGMENT)
    run_logged("building Linux", [*make, f"-j{jobs()}", "Image"], log)
    shutil.copy(source / "arch/arm64/boot/Image", result / "Image")
    shutil.copy(source / ".config", result / "Image.config")
    (result / "version").write_text(f"{package.name}\n")
