"""The image with everything guests boot from, mounted read-only at /lab in dom0."""

from __future__ import annotations

import shutil
from pathlib import Path

from xenvirtio.lab.artifacts.debian_kernel import build_debian_kernel
from xenvirtio.lab.artifacts.guest_initramfs import (
    add_guest_root,
    build_guest_initramfs,
    build_guest_programs,
    guest_root_inputs,
)
from xenvirtio.lab.artifacts.image import make_ext4
from xenvirtio.lab.artifacts.linux import build_linux
from xenvirtio.lab.paths import artifact, forget_old, key_of
from xenvirtio.static.cpio import CpioWriter

_RECIPE = "1"
_SIZE_MIB = 256


def build_guests_image() -> Path:
    """`guests.ext4`: Image, initramfs.gz, debian/vmlinuz, debian/initramfs.gz and programs/*."""
    linux, debian = build_linux(), build_debian_kernel()
    key = key_of(_RECIPE, guest_root_inputs(), str(linux), str(debian))

    def build(result: Path, scratch: Path) -> None:
        folder = scratch / "guests"
        (folder / "debian").mkdir(parents=True)
        shutil.copy(linux, folder / "Image")
        shutil.copy(debian / "vmlinuz", folder / "debian/vmlinuz")
        shutil.copy(build_guest_initramfs(), folder / "initramfs.gz")
        theirs = CpioWriter()
        add_guest_root(theirs)
        for module in sorted((debian / "modules").iterdir()):
            theirs.file(f"modules/{module.name}", module.read_bytes())
        (folder / "debian/initramfs.gz").write_bytes(theirs.finish())
        shutil.copytree(build_guest_programs(), folder / "programs")
        make_ext4(result / "guests.ext4", folder, label="guests", size_mib=_SIZE_MIB, log=scratch / "build.log")

    made = artifact("guests", key, build)
    forget_old("guests", key)
    return made / "guests.ext4"
