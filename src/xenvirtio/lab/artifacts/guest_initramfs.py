"""The guests' root: an initramfs of busybox, e2fsprogs and our own small programs.

Its /init (guest/init) reads commands from the console and runs them, which is all that a scenario needs.
"""

from __future__ import annotations

from pathlib import Path

from xenvirtio.lab.artifacts.tree import add_tree, libraries_of, unpack_tree
from xenvirtio.lab.paths import artifact, key_of
from xenvirtio.lab.process import run_logged
from xenvirtio.static.cpio import CpioWriter

_RECIPE = "2"
_PACKAGES = ("busybox-static", "e2fsprogs")
_PROGRAMS = (
    *("usr/sbin/mke2fs", "usr/sbin/e2fsck", "usr/sbin/resize2fs", "usr/sbin/tune2fs"),
    *("usr/sbin/dumpe2fs", "usr/sbin/debugfs"),
)
_OTHER_NAMES = {"mkfs.ext4": "mke2fs", "fsck.ext4": "e2fsck"}
GUEST_FILES = Path(__file__).parent.parent / "guest"


def build_guest_tools() -> Path:
    """A folder with `tools/`, the unpacked Debian programs and their libraries, laid out as in the guest."""
    return artifact("guest-tools", key_of(_RECIPE, *_PACKAGES, *_PROGRAMS), _build_tools)


def build_guest_programs() -> Path:
    """A folder with our own C programs for guests, each static and named as its source without `.c`."""
    sources = sorted(GUEST_FILES.glob("*.c"))
    return artifact("guest-programs", key_of(_RECIPE, *(str(p.name) for p in sources), *sources), _build_programs)


def build_guest_initramfs() -> Path:
    """`guest.cpio.gz`: the whole root, for a kernel that needs no modules."""

    def build(result: Path, scratch: Path) -> None:
        archive = CpioWriter()
        add_guest_root(archive)
        (result / "guest.cpio.gz").write_bytes(archive.finish())

    return artifact("guest-initramfs", key_of(_RECIPE, guest_root_inputs()), build) / "guest.cpio.gz"


def add_guest_root(archive: CpioWriter) -> None:
    """Put all of a guest's root into an initramfs: `add_guest_base` and /init."""
    add_guest_base(archive)
    archive.file("init", (GUEST_FILES / "init").read_bytes(), executable=True)
    archive.file("shell", (GUEST_FILES / "shell").read_bytes())


def add_guest_base(archive: CpioWriter) -> None:
    """Debian's programs, ours, and the first device nodes."""
    for folder in ("proc", "sys", "dev", "tmp", "root", "mnt", "etc"):
        archive.folder(folder)
    archive.character_device("dev/console", 5, 1)
    archive.character_device("dev/null", 1, 3)
    add_tree(archive, build_guest_tools() / "tools")
    archive.link("bin/sh", "busybox")
    for program in sorted(build_guest_programs().iterdir()):
        archive.file(f"bin/{program.name}", program.read_bytes(), executable=True)
    archive.file("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n")
    archive.file("etc/mtab", b"")


def guest_base_inputs() -> str:
    """A hash over everything `add_guest_base` uses."""
    return key_of(_RECIPE, *_PACKAGES, *_PROGRAMS, *sorted(GUEST_FILES.glob("*.c")))


def guest_root_inputs() -> str:
    """A hash over everything `add_guest_root` uses."""
    return key_of(_RECIPE, *_PACKAGES, *_PROGRAMS, *sorted(GUEST_FILES.iterdir()))


def _build_tools(result: Path, scratch: Path) -> None:
    log = scratch / "build.log"
    root = scratch / "root"
    unpack_tree(_PACKAGES, root, log)
    tools = result / "tools"
    (tools / "bin").mkdir(parents=True)
    (tools / "sbin").mkdir()
    (tools / "lib").mkdir()
    _copy(root / "usr/bin/busybox", tools / "bin/busybox")
    for program in _PROGRAMS:
        _copy(root / program, tools / "sbin" / Path(program).name)
    for name, target in _OTHER_NAMES.items():
        (tools / "sbin" / name).symlink_to(target)
    for name, path in libraries_of([root / program for program in _PROGRAMS], root).items():
        _copy(path, tools / "lib" / name)
    (tools / "etc").mkdir()
    (tools / "etc/ld.so.conf").write_text("/lib\n")


def _copy(source: Path, target: Path) -> None:
    target.write_bytes(source.resolve(strict=True).read_bytes())
    target.chmod(0o755)


def _build_programs(result: Path, scratch: Path) -> None:
    for source in sorted(GUEST_FILES.glob("*.c")):
        command: list[str | Path] = [
            "aarch64-linux-gnu-gcc",
            "-std=gnu11",
            "-O2",
            "-Wall",
            "-Wextra",
            "-Werror",
            "-static",
        ]
        run_logged(
            f"compiling {source.name}",
            [*command, "-o", result / source.stem, source, "-lpthread"],
            scratch / "build.log",
        )
