"""Broken descriptions, each a change to one that is good, and the first line that each gives.

docs/static.md shows the table; `tools/static_document.py` writes it there.
"""

# ruff: noqa: E501  the lines that are printed are as long as they are

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from xenvirtio.errors import ConfigurationError
from xenvirtio.static.check import check
from xenvirtio.static.description_loader import parse_description
from xenvirtio.static.resolve import resolve

DOCUMENT = Path(__file__).parents[2] / "docs" / "static.md"
BEGIN, END = "<!-- broken descriptions: begin -->\n", "<!-- broken descriptions: end -->\n"

GOOD = """\
[system]
name = "good"
xen = "4.20"
platform = "qemu-virt-gicv3"
xen_arguments = "console=dtuart"

[dom0]
memory = "512MiB"
kernel = "Image"
ramdisk = "dom0.cpio.gz"

[[domain]]
name = "a"
memory = "128MiB"
kernel = "Image"
ramdisk = "domu.cpio.gz"
gate = true

[[domain]]
name = "b"
memory = "128MiB"
kernel = "Image"
ramdisk = "domu.cpio.gz"

[[region]]
id = "r0"
size = "1MiB"
host = 0xb0000000
guests = { a = 0x50000000, b = 0x60000000 }

[[region]]
id = "r1"
size = "1MiB"
guests = { a = 0x50100000, b = 0x60100000 }

[[channel]]
name = "c0"
ends = { a = 10, b = 11 }

[[channel]]
name = "c1"
ends = { a = 12, b = 13 }

[[device]]
name = "disk"
type = "block"
frontend = "a"
backend = "dom0"
resource = { file = "/srv/a.img" }

[[device]]
name = "data"
type = "block"
frontend = "a"
backend = "b"
transport = "msg-static"
region = "r1"
channel = "c1"
resource = { file = "/srv/b.img" }
"""

A, B = 'name = "a"\n', 'name = "b"\n'
DISK, DATA = 'name = "disk"\n', 'name = "data"\n'
NO_DOM0 = (GOOD[GOOD.index("[dom0]") : GOOD.index("[[domain]]")], "")
STATIC = 'static_memory = [{ address = 0xc0000000, size = "128MiB" }]\n'


@dataclass(frozen=True, slots=True)
class Broken:
    what: str
    changes: tuple[tuple[str, str], ...]
    """Texts of `GOOD`, each there once or more, and what their first occurrence becomes."""
    line: str
    xen: str = ""
    """What Xen 4.20 was seen to do with it in the lab, where it was tried."""

    @property
    def text(self) -> str:
        text = GOOD
        for old, new in self.changes:
            assert old in text, f"{self.what}: {old!r} is not in the good description"
            text = text.replace(old, new, 1)
        return text


def first_line(text: str) -> str:
    """What `xenvirtio static check` says first about a description, or "" when nothing is wrong with it."""
    try:
        found = check(resolve(parse_description(text)))
    except ConfigurationError as error:
        return str(error)
    return f"{found[0].severity.value}: system.toml: {found[0]}" if found else ""


def after(line: str, more: str) -> tuple[tuple[str, str], ...]:
    return ((line, line + more),)


CASES = (
    Broken(
        "a key that is not known",
        after(A, 'colour = "red"\n'),
        "system.toml: domain[0] \"a\": unknown key 'colour'; allowed: name, os, memory, vcpus, kernel, ramdisk, arguments, domid, enhanced, vpl011, direct_map, static_memory, gate, view, capabilities, trap_unmapped_accesses, spis, grant_frames, files",
    ),
    Broken(
        "a size without its unit's i",
        (("128MiB", "128MB"),),
        'system.toml: domain[0] "a": memory: found \'128MB\'; allowed: a size such as "192MiB", "64KiB" or 4096',
    ),
    Broken(
        "a domain that is not there",
        (("b = 0x60000000", "c = 0x60000000"),),
        "system.toml: region[0] \"r0\": guests: found 'c'; allowed: dom0, a, b",
    ),
    Broken(
        "two domains of one name",
        (('name = "b"', 'name = "a"'),),
        'system.toml: domain[1] "a": is named as domain[0] "a"; give each its own name',
    ),
    Broken(
        "a channel with one end",
        (("{ a = 10, b = 11 }", "{ a = 10 }"),),
        "system.toml: channel[0] \"c0\": ends: found {'a': 10}; allowed: exactly two domains",
    ),
    Broken(
        "a key of another transport",
        after(DATA, "irq = 40\n"),
        'system.toml: device[1] "data": irq: has no meaning with transport = "msg-static"; it belongs to "mmio"',
    ),
    Broken(
        "two regions at one place in a guest",
        (("a = 0x50100000", "a = 0x50080000"),),
        'error: system.toml: region[1] "r1" guests.a and region[0] "r0" guests.a: shared memory 0x50080000-0x5017ffff overlaps shared memory 0x50000000-0x500fffff in a; move one of them',
        "boots",
    ),
    Broken(
        "a region in the guest's RAM",
        (("0x50000000", "0x47f00000"),),
        'error: system.toml: region[0] "r0" guests.a and domain[0] "a" memory: shared memory 0x47f00000-0x47ffffff overlaps RAM 0x40000000-0x47ffffff in a; choose another address',
        "boots",
    ),
    Broken(
        "a region in the GIC's redistributors",
        (("0x50000000", "0x4000000"),),
        'error: system.toml: region[0] "r0" guests.a and Xen\'s GIC redistributors: shared memory 0x04000000-0x040fffff overlaps GIC redistributors 0x03020000-0x0401ffff in a; choose another address',
        "boots",
    ),
    Broken(
        "a region over vpl011",
        (("0x50000000", "0x22000000"),),
        'error: system.toml: region[0] "r0" guests.a and Xen\'s vpl011: shared memory 0x22000000-0x220fffff overlaps vpl011 0x22000000-0x22000fff in a; choose another address',
        "boots",
    ),
    Broken(
        "a region over the grant table",
        (("0x50000000", "0x38800000"),),
        'error: system.toml: region[0] "r0" guests.a and Xen\'s grant table: shared memory 0x38800000-0x388fffff overlaps grant table 0x38000000-0x38ffffff in a; choose another address',
        "boots",
    ),
    Broken(
        "a region over the magic pages",
        (("0x50000000", "0x39000000"),),
        'error: system.toml: region[0] "r0" guests.a and Xen\'s magic pages: shared memory 0x39000000-0x390fffff overlaps magic pages 0x39000000-0x39ffffff in a; choose another address',
        "boots",
    ),
    Broken(
        "a region over virtio-mmio registers",
        (("0x50000000", "0x2000000"),),
        'error: system.toml: region[0] "r0" guests.a and device[0] "disk" base: shared memory 0x02000000-0x020fffff overlaps device registers 0x02000000-0x020001ff in a; move one of them',
    ),
    Broken(
        "registers over the host's UART in a direct-mapped guest",
        (
            *after("gate = true\n", "direct_map = true\n" + STATIC),
            ("a = 0x50000000", "a = 0xb0000000"),
            ("a = 0x50100000", "a = 0xb0100000"),
            *after(DISK, "base = 0x9000000\n"),
        ),
        'error: system.toml: device[0] "disk" base and Xen\'s host UART: device registers 0x09000000-0x090001ff overlaps host UART 0x09000000-0x09000fff in a; choose another address',
    ),
    Broken(
        "a guest address beyond all tables",
        (("0x50000000", "0x10000000000"),),
        'warning: system.toml: region[0] "r0" guests.a and Xen\'s address space for guests: 0x10000000000-0x100000fffff ends above 0xffffffffff, which not every processor reaches; choose a lower address',
        "boots (44 bits)",
    ),
    Broken(
        "two regions at one place on the host",
        (('id = "r1"\n', 'id = "r1"\nhost = 0xb0080000\n'),),
        'error: system.toml: region[1] "r1" host and region[0] "r0" host: shared memory 0xb0080000-0xb017ffff overlaps shared memory 0xb0000000-0xb00fffff on the host; move one of them',
        "dies silently",
    ),
    Broken(
        "a region outside of the host's RAM",
        (("0xb0000000", "0x10000000"),),
        'error: system.toml: region[0] "r0" host and platform qemu-virt-gicv3: shared memory 0x10000000-0x100fffff is not within RAM 0x40000000-0xffffffff',
        "dies silently",
    ),
    Broken(
        "static memory where modules are loaded",
        (*after(B, STATIC), ("0xc0000000", "0x48000000")),
        'error: system.toml: domain[1] "b" static_memory[0] and platform qemu-virt-gicv3 loaded[0]: static memory 0x48000000-0x4fffffff overlaps what QEMU loads 0x40000000-0x48ffffff on the host; move one of them',
    ),
    Broken(
        "static memory less than memory",
        (*after(A, STATIC), ('memory = "128MiB"\n', 'memory = "192MiB"\n')),
        'error: system.toml: domain[0] "a" static_memory and domain[0] "a" memory: 128MiB of static memory is not the 192MiB of memory; Xen panics unless they are equal',
        "panics",
    ),
    Broken(
        "direct-map without static memory",
        after(B, "direct_map = true\n"),
        'error: system.toml: domain[1] "b" direct_map and domain[1] "b" static_memory: a direct-mapped domain without static memory makes Xen panic; give static_memory',
        "panics",
    ),
    Broken(
        "a direct-mapped end at another address than the host's",
        (*after(B, "direct_map = true\n" + STATIC), ("b = 0x60100000", "b = 0xb0200000")),
        'error: system.toml: region[0] "r0" guests.b and region[0] "r0" host: b is direct-mapped: its address 0x60000000 must be the host\'s, 0xb0000000',
        "panics",
    ),
    Broken(
        "dom0's end at another address than the host's",
        (("b = 0x60000000", "b = 0x60000000, dom0 = 0xb1000000"),),
        'error: system.toml: region[0] "r0" guests.dom0 and region[0] "r0" host: dom0 is direct-mapped: its address 0xb1000000 must be the host\'s, 0xb0000000',
        "panics",
    ),
    Broken(
        "more memory than the host has",
        (("512MiB", "4GiB"),),
        "error: system.toml: all memory and platform qemu-virt-gicv3: domains 4352MiB, shared memory 2MiB, Xen about 128MiB are 1410MiB more than the 3GiB of the host",
        "panics",
    ),
    Broken(
        "a region that is not in whole pages",
        (('size = "1MiB"', "size = 0x100200"),),
        'error: system.toml: region[0] "r0" size and Xen\'s page of 4 KiB: 0x100200 is not in whole pages',
        "dies silently",
    ),
    Broken(
        "a name too long for Xen",
        (('id = "r0"', 'id = "frontend-to-backend"'),),
        "error: system.toml: region[0] \"frontend-to-backend\" id and Xen's xen,shm-id: 'frontend-to-backend' has 19 characters; Xen takes at most 15",
        "dies silently",
    ),
    Broken(
        "a shared region from the heap before 4.19",
        (("4.20", "4.18"),),
        'error: system.toml: region[1] "r1" and system xen 4.18: shared memory from Xen\'s heap: only from Xen 4.19 on; give host = ADDRESS',
    ),
    Broken(
        "XenStore without a dom0",
        (NO_DOM0, ("gate = true\n", 'enhanced = "enabled"\n'), ('backend = "dom0"', 'backend = "b"')),
        'error: system.toml: domain[0] "a" enhanced and the absent [dom0]: "enabled" without a domain that serves XenStore makes Xen panic; take "no-xenstore"',
        "panics",
    ),
    Broken(
        "enhanced of a later Xen",
        after(B, 'enhanced = "legacy"\n'),
        'error: system.toml: domain[1] "b" enhanced and system xen 4.20: enhanced = "legacy": only from Xen 4.21 on; leave it out',
        "boots without it",
    ),
    Broken(
        "capabilities of a later Xen",
        after(B, 'capabilities = ["control"]\n'),
        'error: system.toml: domain[1] "b" capabilities and system xen 4.20: capabilities of a domain that Xen builds: only from Xen 4.21 on; leave it out',
        "boots without it",
    ),
    Broken(
        "trap_unmapped_accesses of a later Xen",
        after(B, "trap_unmapped_accesses = false\n"),
        'error: system.toml: domain[1] "b" trap_unmapped_accesses and system xen 4.20: trap_unmapped_accesses = false: only from Xen 4.21 on; leave it out',
        "boots without it",
    ),
    Broken(
        "a port that Xen does not have",
        (("a = 10", "a = 1024"),),
        'error: system.toml: channel[0] "c0" ends.a and Xen\'s event channels: port 1024 does not exist; a domain built by Xen has 1 to 1023',
        "panics",
    ),
    Broken(
        "XenStore's own port",
        (("a = 10", "a = 1"),),
        'error: system.toml: channel[0] "c0" ends.a and domain[0] "a" enhanced: port 1 is XenStore\'s with "enabled"; take one from 8 on, or leave it out',
        "panics",
    ),
    Broken(
        "one channel described from both sides",
        (("{ a = 12, b = 13 }", "{ b = 11, a = 10 }"),),
        'error: system.toml: channel[1] "c1" ends and channel[0] "c0" ends: both describe one and the same channel; one table describes both of its ends: delete the other',
    ),
    Broken(
        "a port joined to two others",
        (("{ a = 12, b = 13 }", "{ a = 12, b = 11 }"),),
        'error: system.toml: channel[1] "c1" ends and channel[0] "c0" ends: port 11 of b is joined to port 12 of a here and to port 10 of a there; a port has one other end',
    ),
    Broken(
        "a channel into a domain without event channels",
        after(B, 'enhanced = "disabled"\n'),
        'error: system.toml: channel[0] "c0" ends.b and domain[1] "b" enhanced: b has no event channels with "disabled"; "no-xenstore" is the least that has them',
        "boots",
    ),
    Broken(
        "a device whose region the backend does not have",
        (("b = 0x60100000", "dom0 = 0xb0200000"),),
        'error: system.toml: device[1] "data" region and region[1] "r1" guests: region \'r1\' is not in b; both ends of a device share its region',
    ),
    Broken(
        "a device whose channel goes elsewhere",
        (("{ a = 12, b = 13 }", "{ a = 12, dom0 = 13 }"),),
        'error: system.toml: device[1] "data" channel and channel[1] "c1" ends: channel \'c1\' does not reach b; both ends of a device share its channel',
    ),
    Broken(
        "two devices on one region and two channels",
        (
            ("gate = true\n", ""),
            ('backend = "dom0"\n', 'backend = "b"\ntransport = "msg-static"\nregion = "r1"\nchannel = "c0"\n'),
        ),
        'error: system.toml: device[1] "data" region and device[0] "disk" region: both take r1, with another frontend, backend, region or channel; devices that share one share all of them',
    ),
    Broken(
        "a region too small for a device",
        (('id = "r1"\nsize = "1MiB"', 'id = "r1"\nsize = "32KiB"'),),
        'error: system.toml: device[1] "data" region and region[1] "r1" size: 32KiB is too small for rings and buffers; a bus takes at least 64KiB',
    ),
    Broken(
        "an IOREQ backend that is not dom0",
        (('backend = "dom0"', 'backend = "b"'),),
        'error: system.toml: device[0] "disk" backend and domain[1] "b": b may not be an IOREQ server for another domain; let dom0 serve it, or take transport = "msg-static"',
    ),
    Broken(
        "a device that the guest touches too early",
        (("gate = true\n", ""),),
        'warning: system.toml: device[0] "disk" and domain[0] "a" gate: a crashes when it touches the device before dom0 serves it; set gate = true, or load the driver as a module once the backend is there',
    ),
    Broken(
        "a gate that nobody opens",
        after(B, "gate = true\n"),
        'error: system.toml: domain[1] "b" gate and the [[device]] tables: b has no virtio-mmio device, so nothing would ever open the gate; leave gate out',
    ),
    Broken(
        "the UART's interrupt",
        after(DISK, "irq = 32\n"),
        'error: system.toml: device[0] "disk" irq and domain[0] "a" vpl011: interrupt 32 is that of the domain\'s UART; take another, or leave irq out',
    ),
    Broken(
        "a register window that is not a slot",
        after(DISK, "base = 0x2000100\n"),
        'error: system.toml: device[0] "disk" base and virtio-mmio slots: 0x02000100 is not a multiple of 0x200',
    ),
    Broken(
        "Argo without Xen's option",
        after(DISK, 'transport = "msg-argo"\n'),
        'error: system.toml: device[0] "disk" transport and system xen_arguments: Xen offers Argo only when told so; add argo to xen_arguments',
    ),
    Broken(
        "shared memory mapped in two ways",
        after(B, 'view = "uio"\n'),
        'warning: system.toml: domain[1] "b" view and domain[0] "a" view: region \'r0\' is mapped uncached by UIO here and cached by /dev/mem there, which is incoherent on real hardware; let both be the same',
    ),
    Broken(
        "files without a ramdisk",
        (
            ("[[domain]]\n" + B, "[[domain]]\n" + B + 'files = { "/x" = "x" }\n'),
            ('ramdisk = "domu.cpio.gz"\n\n[[region]]', "\n[[region]]"),
        ),
        'error: system.toml: domain[1] "b" files and domain[1] "b" ramdisk: files are placed into the domain\'s ramdisk, and it has none; give ramdisk, or leave files out',
    ),
    Broken(
        "a ramdisk for Zephyr",
        after(B, 'os = "zephyr"\n'),
        'error: system.toml: domain[1] "b" ramdisk and domain[1] "b" os: Zephyr has no ramdisk; its plan is compiled in, leave ramdisk out',
    ),
    Broken(
        "two domains of one number",
        after(B, "domid = 1\n"),
        'error: system.toml: domain[1] "b" domid and domain[0] "a": both are 1; leave domid out, Xen counts the domains in their order',
    ),
    Broken(
        "dom0's memory said twice",
        (("console=dtuart", "dom0_mem=512M"),),
        "error: system.toml: system xen_arguments and dom0 memory: 'dom0_mem=512M' is made from [dom0] memory; leave it out here",
    ),
    Broken(
        "ImageBuilder's room over static memory",
        (
            *after(B, STATIC),
            ("[dom0]\n", "[imagebuilder]\nmemory_start = 0x40000000\nmemory_end = 0xd0000000\n\n[dom0]\n"),
        ),
        'warning: system.toml: imagebuilder memory_end and domain[1] "b" static_memory[0]: ImageBuilder may load modules into 0x40000000-0xcfffffff, where static memory 0xc0000000-0xc7ffffff is; end below it',
    ),
    Broken(
        "more vCPUs than the GIC has",
        (("gicv3", "gicv2"), *after(B, "vcpus = 9\n")),
        'error: system.toml: domain[1] "b" vcpus and GICv2 of platform qemu-virt-gicv2: 9 vCPUs, of which a GICv2 has 8; take fewer',
    ),
    Broken(
        "a kernel as a ramdisk",
        (("dom0.cpio.gz", "Image"),),
        "error: system.toml: dom0 ramdisk and dom0 kernel: 'Image' is a ramdisk here and a kernel there; Xen takes a place in memory for one kind",
    ),
)


def table() -> str:
    rows = [f"| {case.what} | `{case.line}` | {case.xen} |" for case in CASES]
    return "\n".join(["| what is wrong | what `static check` says first | Xen 4.20 |", "|---|---|---|", *rows, ""])
