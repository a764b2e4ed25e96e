"""From a description of a static system to something the lab boots: `xenvirtio static build` with the lab's files.

A description for the lab names these files beside its own: `Image`, `guest.cpio.gz` (busybox, e2fsprogs and our guest
programs; commands on its console) and `guest-python.cpio.gz` (Python and our package as well; runs `/start`).
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from xenvirtio.lab.artifacts.guest_initramfs import build_guest_initramfs
from xenvirtio.lab.artifacts.guest_python import build_guest_python
from xenvirtio.lab.artifacts.linux import build_linux
from xenvirtio.lab.built_system import BuiltSystem, read_built_system
from xenvirtio.lab.options import MachineOptions
from xenvirtio.lab.paths import cache_root, locked
from xenvirtio.lab.process import run_logged
from xenvirtio.lab.qemu import dump_tree

LAB_FILES: Mapping[str, Callable[[], Path]] = {
    "Image": build_linux,
    "guest.cpio.gz": build_guest_initramfs,
    "guest-python.cpio.gz": build_guest_python,
}


def build_system(description: Path, options: MachineOptions, name: str) -> BuiltSystem:
    """Build what a description says for a machine with these options, in a folder of that name of the cache.

    Raises:
        ConfigurationError: an entry of boot.toml is wrong. ResourceError: a build failed; the message ends with what
            `static build` said.
    """
    folder = cache_root() / "systems" / name
    with locked(f"system-{name}"):
        shutil.rmtree(folder, ignore_errors=True)
        files = folder / "files"
        files.mkdir(parents=True)
        for entry in description.resolve().parent.iterdir():
            (files / entry.name).symlink_to(entry)
        for wanted, build in LAB_FILES.items():
            if not (files / wanted).exists():
                (files / wanted).symlink_to(build())
        tree, log = folder / "qemu.dtb", folder / "build.log"
        dump_tree(options, tree, log)
        command: list[str | Path] = [sys.executable, "-m", "xenvirtio", "static", "build", files / description.name]
        command += ["--host-tree", tree, "--files", files, "-o", folder / "out"]
        run_logged(f"building {description}", command, log)
        return read_built_system(folder / "out")


def build_system_text(text: str, files: Mapping[str, str | bytes], options: MachineOptions, name: str) -> BuiltSystem:
    """The same for a description given as text, with the files that it names by content."""
    folder = cache_root() / "systems" / f"{name}.description"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for path, content in files.items():
        (folder / path).write_bytes(content.encode() if isinstance(content, str) else content)
    description = folder / "system.toml"
    description.write_text(text)
    return build_system(description, options, name)
