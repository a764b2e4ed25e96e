"""dom0's root: Debian packages for arm64 unpacked into an ext4 image, without running a line of them.

What `debootstrap` would have done afterwards by running package scripts is done here (links) or by
`dom0_files/init` at boot (mounts, busybox's applets).
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from xenvirtio.lab.artifacts.bytecode import byte_code_input, compile_tree
from xenvirtio.lab.artifacts.image import make_ext4
from xenvirtio.lab.artifacts.tree import unpack_tree
from xenvirtio.lab.paths import artifact, key_of

_RECIPE = "3"
_BASE = ("python3", "busybox-static", "e2fsprogs", "strace")
_XEN_TOOLS = ("xen-utils-4.20", "xenstore-utils")
_INIT = Path(__file__).parent.parent / "dom0_files" / "init"
_SIZE_MIB = 6144
"""Sparse: room for the guests' disk images of a run, which live on this root and vanish with it."""

_EMPTY_FOLDERS = [
    "proc",
    "sys",
    "dev",
    "run",
    "tmp",
    "root",
    "opt/xenvirtio",
    "srv/lab",
    "mnt",
    "lab",
    "var/lib/xen",
    "var/log/xen",
    "var/lib/xenstored",
    "var/tmp",
    "etc/xen",
]
_UNUSED = "usr/share/doc usr/share/man usr/share/locale usr/share/info usr/share/zoneinfo usr/lib/udev usr/share/perl5"


def build_rootfs() -> Path:
    """The image of dom0's root, `root.ext4`. What runs in it that is ours comes on images of its own."""
    return _root("dom0", (*_BASE, *_XEN_TOOLS))


def build_light_rootfs() -> Path:
    """The same without Xen's tools: no xl, no xenstored, no library of Xen's."""
    return _root("dom0-light", _BASE)


def _root(name: str, packages: Sequence[str]) -> Path:
    def build(result: Path, scratch: Path) -> None:
        _build(packages, result, scratch)

    return artifact(name, key_of(_RECIPE, " ".join(packages), _INIT, byte_code_input()), build) / "root.ext4"


def _build(packages: Sequence[str], result: Path, scratch: Path) -> None:
    log = scratch / "build.log"
    root = scratch / "root"
    unpack_tree(packages, root, log)
    for unused in _UNUSED.split():
        shutil.rmtree(root / unused, ignore_errors=True)
    compile_tree(root, "usr/lib/python3.13", log, checked=False)
    for folder in _EMPTY_FOLDERS:
        (root / folder).mkdir(parents=True, exist_ok=True)
    # xl waits for the console and takes its lock below /var/run: it must be the tmpfs.
    (root / "var/run").symlink_to("/run")
    (root / "usr/bin/sh").symlink_to("busybox")
    (root / "etc/hostname").write_text("dom0\n")
    (root / "etc/hosts").write_text("127.0.0.1 localhost dom0\n")
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    (root / "etc/group").write_text("root:x:0:\n")
    (root / "etc/fstab").touch()
    init = root / "init"
    shutil.copy(_INIT, init)
    init.chmod(0o755)
    make_ext4(result / "root.ext4", root, label="dom0", size_mib=_SIZE_MIB, log=log)
