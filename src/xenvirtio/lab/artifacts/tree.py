"""Debian packages for arm64 unpacked into a folder as an installed system has them, and folders into an initramfs."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from xenvirtio.errors import ResourceError
from xenvirtio.lab.apt import open_archive, unpack
from xenvirtio.lab.process import output_of
from xenvirtio.static.cpio import CpioWriter

_LIBRARY_FOLDERS = ("usr/lib/aarch64-linux-gnu", "lib/aarch64-linux-gnu", "usr/lib", "lib")


def unpack_tree(packages: Sequence[str], root: Path, log: Path) -> None:
    """Unpack these packages and all they depend on over `root`, without running a line of them.

    The links of a merged /usr are made first: Debian's packages do not carry them.
    """
    for name in ("bin", "sbin", "lib"):
        (root / "usr" / name).mkdir(parents=True)
        (root / name).symlink_to(f"usr/{name}")
    for package in open_archive().download(packages, closure=True):
        unpack(package, root, log)


def add_tree(archive: CpioWriter, folder: Path) -> None:
    """Add all that a folder holds to an initramfs, in the order of the names; a file's mode says what is a program."""
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            archive.link(name, os.readlink(path))
        elif path.is_dir():
            archive.folder(name)
        else:
            archive.file(name, path.read_bytes(), executable=os.access(path, os.X_OK))


def libraries_of(programs: Sequence[Path], root: Path) -> dict[str, Path]:
    """All libraries that these arm64 programs need, by name, found in `root`: the loader and what libraries need too.

    Raises:
        ResourceError: one is in none of the packages that were unpacked there.
    """
    found: dict[str, Path] = {}
    wanted = [name for program in programs for name in _needed(program)]
    while wanted:
        name = wanted.pop()
        if name in found:
            continue
        path = next((root / folder / name for folder in _LIBRARY_FOLDERS if (root / folder / name).exists()), None)
        if path is None:
            raise ResourceError(f"{name}, which an unpacked program needs, is in none of the unpacked packages")
        found[name] = path
        wanted += _needed(path)
    return found


def _needed(program: Path) -> list[str]:
    """Libraries that an arm64 program or library asks for, its interpreter included."""
    listing = output_of(
        f"reading {program.name}", ["aarch64-linux-gnu-readelf", "--dynamic", "--program-headers", "--wide", program]
    )
    interpreter = re.findall(r"program interpreter: /lib/([^\]]+)\]", listing)
    return [*re.findall(r"\(NEEDED\).*\[([^\]]+)\]", listing), *interpreter]
