"""What a Linux domain finds in its root: its plan, the description's files, names for its shared memory."""

from __future__ import annotations

from collections.abc import Container, Mapping

from xenvirtio.errors import ConfigurationError
from xenvirtio.static.cpio import CpioWriter
from xenvirtio.static.description import Domain
from xenvirtio.static.emit.backends import BACKENDS_FILE, backends_file, serves
from xenvirtio.static.emit.passthrough import has_uio_nodes
from xenvirtio.static.plan import DEFAULT_PLAN, encode_plan
from xenvirtio.static.system import System
from xenvirtio.virtio.device import DeviceType

UDEV_RULES = "/etc/udev/rules.d/60-xenvirtio.rules"

_INITRAMFS_MAGIC = {
    b"070701": "cpio",
    b"070702": "cpio with checksums",
    b"\x1f\x8b": "gzip",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"BZh": "bzip2",
    b"\x5d\0\0": "lzma",
    b"\x89LZO": "lzo",
    b"\x02\x21\x4c\x18": "lz4",
}
_GAP_BYTES = 4
"""Zeros between two archives: Linux skips them, and its lz4 decoder takes them for the end of its input."""


def domain_files(
    system: System, domain: Domain, contents: Mapping[str, bytes], served: Container[DeviceType]
) -> dict[str, bytes]:
    """Path in the domain -> content. `contents` are the description's files; theirs go before ours.

    `served` are the types that `backends.toml` may name.
    """
    found = {str(DEFAULT_PLAN): encode_plan(system.plan_of(domain.name)).encode()}
    if serves(system, domain.name):
        found[BACKENDS_FILE] = backends_file(system, domain.name, served).encode()
    if has_uio_nodes(system, domain):
        found[UDEV_RULES] = udev_rules(system, domain.name).encode()
    return found | dict(contents)


def udev_rules(system: System, domain: str) -> str:
    """`/dev/xenvirtio/ID` for the region's /dev/uioN, whose number says nothing."""
    lines = ["# Shared memory by its id. Made by xenvirtio static build."]
    for region in system.regions_of(domain):
        address = f"0x{region.guests[domain]:016x}"
        lines.append(f'SUBSYSTEM=="uio", ATTR{{maps/map0/addr}}=="{address}", SYMLINK+="xenvirtio/{region.id}"')
    return "\n".join(lines) + "\n"


def archive(files: Mapping[str, bytes]) -> bytes:
    """The files as a gzip-compressed cpio archive, parent folders included."""
    writer = CpioWriter()
    for path, content in sorted(files.items()):
        writer.file(path.lstrip("/"), content, executable=content.startswith(b"#!"))
    return writer.finish()


def extend_ramdisk(ramdisk: bytes, files: Mapping[str, bytes], name: str) -> bytes:
    """Return an initramfs with files added: a second archive behind it, which Linux unpacks over the first.

    Raises:
        ConfigurationError: not an initramfs, so that the kernel would not look behind it.
    """
    if not ramdisk.startswith(tuple(_INITRAMFS_MAGIC)):
        raise ConfigurationError(
            name, "not an initramfs, so nothing can be added to it", "allowed: a cpio archive, plain or compressed"
        )
    padding = -len(ramdisk) % 4 + _GAP_BYTES
    return ramdisk + bytes(padding) + archive(files)
