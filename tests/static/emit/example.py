"""A system with one of everything that the outputs can say, and the files it names."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Sequence
from pathlib import Path

from xenvirtio.static.a64 import branch
from xenvirtio.static.cpio import CpioWriter
from xenvirtio.static.description_loader import parse_description
from xenvirtio.static.emit.modules import Module, ModuleFile, ModuleKind, place
from xenvirtio.static.resolve import resolve
from xenvirtio.static.system import System

DESCRIPTION = """\
[system]
name = "example"
xen = "4.22"
platform = "qemu-virt-gicv3"
xen_arguments = "console=dtuart quiet"
static_heap = [{ address = 0xe0000000, size = "64MiB" }]

[dom0]
memory = "512MiB"
vcpus = 2
kernel = "Image"
arguments = "root=/dev/vda say=\\"it's $HOME `id` \\\\ ;#\\""

[[domain]]
name = "front"
memory = "192MiB"
vcpus = 2
kernel = "Image"
ramdisk = "initramfs.cpio.gz"
arguments = "console=ttyAMA0"
gate = true
view = "uio"
spis = 64
grant_frames = 16
trap_unmapped_accesses = false
files = { "/etc/motd" = "motd" }

[[domain]]
name = "back"
memory = "128MiB"
static_memory = [{ address = 0xd0000000, size = "128MiB" }]
direct_map = true
kernel = "Image"
ramdisk = "initramfs.cpio.gz"
enhanced = "no-xenstore"
vpl011 = false

[[domain]]
name = "sensor"
os = "zephyr"
memory = "16MiB"
kernel = "zephyr.bin"

[[region]]
id = "ring0"
size = "1MiB"
host = 0xc0000000
owner = "front"
guests = { dom0 = 0xc0000000, front = 0x50000000 }

[[region]]
id = "heap.1"
size = "2MiB"
guests = { front = 0x51000000, sensor = 0x52000000 }

[[channel]]
name = "ring0"
ends = { dom0 = 20, front = 12 }

[[channel]]
name = "samples"
ends = { sensor = 10, front = 13 }

[[device]]
name = "root"
type = "block"
frontend = "front"
backend = "dom0"
grants = false
resource = { file = "/srv/a \\"b\\".img", read_only = true }
serial = "it's"

[[device]]
name = "net"
type = "net"
frontend = "front"
backend = "dom0"
grants = true
resource = { tap = "tap0" }

[[device]]
name = "data"
type = "block"
frontend = "front"
backend = "back"
transport = "msg-static"
resource = { file = "/srv/data.img" }
"""

HOST_TREE = """\
/dts-v1/;
/memreserve/ 0x48000000 0x1000;
/ {
    #address-cells = <2>;
    #size-cells = <2>;
    compatible = "linux,dummy-virt";
    interrupt-parent = <&gic>;
    chosen { stdout-path = "/pl011@9000000"; rng-seed = <1 2 3 4>; bootargs = "old"; module@1 { reg = <1>; }; };
    memory@40000000 { device_type = "memory"; reg = <0 0x40000000 0 0xc0000000>; };
    gic: intc@8000000 { #interrupt-cells = <3>; interrupt-controller; };
};
"""


def kernel() -> bytes:
    """The smallest arm64 Image that a gate can be put behind."""
    return struct.pack("<IIQQQQQQ4sI", branch(0x40), 0, 0, 0x3000, 0xA, 0, 0, 0, b"ARM\x64", 0).ljust(0x2000, b"\1")


def ramdisk() -> bytes:
    writer = CpioWriter()
    writer.file("init", b"#!/bin/sh\n", executable=True)
    return writer.finish()


def write_inputs(folder: Path, description: str = DESCRIPTION) -> Path:
    """Write the description and what it names; return the description's path."""
    (folder / "Image").write_bytes(kernel())
    (folder / "zephyr.bin").write_bytes(kernel() + b"z")
    (folder / "initramfs.cpio.gz").write_bytes(ramdisk())
    (folder / "motd").write_bytes(b"hello\n")
    (folder / "host.dts").write_text(HOST_TREE)
    (folder / "system.toml").write_text(description)
    return folder / "system.toml"


def system(text: str = DESCRIPTION) -> System:
    return resolve(parse_description(text))


def modules(of: System) -> list[Module]:
    """Made-up files for every domain, placed."""
    files = []
    for domain in of.domains:
        files.append(ModuleFile(domain.name, ModuleKind.KERNEL, f"modules/{domain.kernel}", 0x2000))
        if domain.ramdisk is not None:
            files.append(ModuleFile(domain.name, ModuleKind.RAMDISK, f"modules/{domain.name}-ramdisk", 0x123))
    files.append(ModuleFile("front", ModuleKind.DEVICE_TREE, "modules/front-passthrough.dtb", 0x321))
    return place(of, files)


def archive_names(data: bytes) -> Sequence[str]:
    """Names of the entries of a gzip-compressed archive."""
    data = gzip.decompress(data)
    names, at = [], 0
    while data[at : at + 6] == b"070701":
        size, name_size = (int(data[at + 6 + 8 * field : at + 14 + 8 * field], 16) for field in (6, 11))
        names.append(data[at + 110 : at + 109 + name_size].decode())
        at = ((at + 110 + name_size + 3) & ~3) + ((size + 3) & ~3)
    return names[:-1]
