"""Debian's own arm64 kernel, untouched, with the modules a guest needs for a virtio disk and ext4.

It lacks CONFIG_XEN_VIRTIO (no grants), so its guests run in foreign mode.
"""

from __future__ import annotations

import lzma
import re
from pathlib import Path

from xenvirtio.errors import ResourceError
from xenvirtio.lab.apt import open_archive, unpack
from xenvirtio.lab.paths import artifact, key_of

_RECIPE = "2"
_PACKAGE = "linux-image-arm64"
_MODULES = ("virtio_mmio", "virtio_blk", "virtio_net", "virtio_console", "ext4")


def build_debian_kernel() -> Path:
    """A folder with `vmlinuz`, `modules/*.ko` and `modules/order`, the modules' file names in loading order."""
    return artifact("debian-kernel", key_of(_RECIPE, _PACKAGE, *_MODULES), _build)


def _build(result: Path, scratch: Path) -> None:
    archive = open_archive()
    # The real package's name carries the version; the one we name only depends on it.
    real = archive.dependencies(_PACKAGE, r"^linux-image-\d")
    if not real:
        raise ResourceError(f"package {_PACKAGE} depends on no kernel image")
    (package,) = archive.download(real[:1], closure=False)
    root = scratch / "root"
    unpack(package, root, scratch / "build.log")
    (kernel,) = (root / "boot").glob("vmlinuz-*")
    (result / "vmlinuz").write_bytes(kernel.read_bytes())
    (result / "version").write_text(kernel.name.removeprefix("vmlinuz-") + "\n")
    found = {_module_name(path): path for path in root.rglob("*.ko*")}
    (builtin_list,) = root.rglob("modules.builtin")
    builtin = {_module_name(Path(line)) for line in builtin_list.read_text().splitlines()}
    order: list[str] = []
    (result / "modules").mkdir()

    def add(name: str) -> None:
        if name in order or (name in builtin and name not in found):
            return
        if name not in found:
            raise ResourceError(f"{package.name} has no module {name}")
        data = found[name].read_bytes()
        if found[name].suffix == ".xz":
            data = lzma.decompress(data)
        for needed in _module_depends(data):
            add(needed)
        if name not in order:
            order.append(name)
            (result / "modules" / f"{name}.ko").write_bytes(data)

    for name in _MODULES:
        add(name)
    # ext4 asks for its checksum by name at mount time, which no dependency says.
    for name in ("crc32c_generic", "crc32c"):
        if name in found:
            add(name)
    (result / "modules/order").write_text("".join(f"{name}.ko\n" for name in order))


def _module_name(path: Path) -> str:
    return path.name.partition(".")[0].replace("-", "_")


def _module_depends(data: bytes) -> list[str]:
    """The modules named in a module's `depends=` field of its .modinfo section."""
    match = re.search(rb"\0depends=([^\0]*)\0", data)
    return [name.replace("-", "_") for name in match[1].decode().split(",") if name] if match else []
