"""Debian packages for arm64 unpacked into a folder, laid out as an installed system is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from xenvirtio.lab.apt import open_archive, unpack


def unpack_tree(packages: Sequence[str], root: Path, log: Path) -> None:
    """Unpack these packages and all they depend on over `root`, without running a line of them.

    The links of a merged /usr are made first: Debian's packages do not carry them.
    """
    for name in ("bin", "sbin", "lib"):
        (root / "usr" / name).mkdir(parents=True)
        (root / name).symlink_to(f"usr/{name}")
    for package in open_archive().download(packages, closure=True):
        unpack(package, root, log)
