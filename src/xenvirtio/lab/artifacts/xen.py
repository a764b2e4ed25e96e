"""Xen for arm64 with IOREQ servers, which Debian's own binary lacks (they hide behind CONFIG_EXPERT)."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from xenvirtio.lab.artifacts.kconfig import FRAGMENTS, check_options, known_options
from xenvirtio.lab.artifacts.xen_source import given_source, source_key, unpack_source
from xenvirtio.lab.paths import artifact, key_of
from xenvirtio.lab.process import jobs, run_logged

_RECIPE = "1"
_FRAGMENT = FRAGMENTS / "xen-arm64.fragment"


def build_xen() -> Path:
    """The hypervisor's image, `xen`, with its configuration `xen.config` and its `version` beside it."""
    source = given_source()
    key = key_of(_RECIPE, _FRAGMENT) if source is None else key_of(_RECIPE, _FRAGMENT, source_key(source))

    def build(result: Path, scratch: Path) -> None:
        _build(source, result, scratch)

    return artifact("xen", key, build) / "xen"


def _build(source: Path | None, result: Path, scratch: Path) -> None:
    log = scratch / "build.log"
    tree = scratch / "source"
    tree.mkdir()
    unpack_source(source, tree, log)
    wanted = _FRAGMENT.read_text().splitlines()
    if source is not None:
        # Another version may lack an option, because it came later or is always on by now.
        known = known_options(tree / "xen")
        wanted = [line for line in wanted if line.partition("=")[0] in known]
    defconfig = tree / "xen/arch/arm/configs/xenvirtio_defconfig"
    defconfig.write_text("".join(f"{line}\n" for line in wanted))
    make = ["make", "-C", str(tree / "xen"), "XEN_TARGET_ARCH=arm64", "CROSS_COMPILE=aarch64-linux-gnu-"]
    run_logged("configuring Xen", [*make, f"KBUILD_DEFCONFIG={defconfig.name}", "defconfig"], log)
    config = tree / "xen/.config"
    check_options("Xen", config, defconfig)
    run_logged("building Xen", [*make, f"-j{jobs()}"], log)
    shutil.copy(tree / "xen/xen", result / "xen")
    shutil.copy(config, result / "xen.config")
    (result / "version").write_text(f"{_version(tree / 'xen/Makefile')}\n")


def _version(makefile: Path) -> str:
    """Major, minor and the rest, as Xen's own Makefile says."""
    parts = dict(re.findall(r"^export (XEN_\w+)\s*\??=\s*(\S*)", makefile.read_text(), re.MULTILINE))
    extra = parts.get("XEN_EXTRAVERSION", "").partition("$")[0]
    return f"{parts.get('XEN_VERSION', '?')}.{parts.get('XEN_SUBVERSION', '?')}{extra}"
