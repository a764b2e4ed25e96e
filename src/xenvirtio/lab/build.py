"""Builds all that a lab machine boots from, in order, saying what it does."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from xenvirtio.lab.artifacts.debian_kernel import build_debian_kernel
from xenvirtio.lab.artifacts.engine import build_headers, build_package_image
from xenvirtio.lab.artifacts.guest_initramfs import build_guest_initramfs, build_guest_programs, build_guest_tools
from xenvirtio.lab.artifacts.guest_python import build_guest_python
from xenvirtio.lab.artifacts.guests import build_guests_image
from xenvirtio.lab.artifacts.linux import build_linux
from xenvirtio.lab.artifacts.rootfs import build_light_rootfs, build_rootfs
from xenvirtio.lab.artifacts.xen import build_xen
from xenvirtio.lab.host_tools import check_host_tools
from xenvirtio.lab.options import Dom0Root, Images, MachineOptions

STEPS: tuple[tuple[str, str, Callable[[], Path]], ...] = (
    ("xen", "Xen with IOREQ servers (about 1 min)", build_xen),
    ("rootfs", "dom0's root from Debian packages (about 15 s)", build_rootfs),
    ("light-root", "a dom0 root without Xen's tools", build_light_rootfs),
    ("guest-tools", "the guests' programs from Debian packages", build_guest_tools),
    ("guest-programs", "our own guest programs", build_guest_programs),
    ("debian-kernel", "Debian's own arm64 kernel", build_debian_kernel),
    ("python-headers", "Python headers for the compiled engine", build_headers),
    ("linux", "Linux for dom0 and guests (about 8 min)", build_linux),
    ("guest-initramfs", "the guests' root", build_guest_initramfs),
    ("guests", "the guests' image", build_guests_image),
    ("package", "this working tree's package, its engine compiled", build_package_image),
    ("guest-python", "the root of guests with Python", build_guest_python),
)
"""Name, what it is, and the function; what is cheap and may fail comes before what takes minutes."""

ROOTS = {Dom0Root.FULL: "rootfs", Dom0Root.LIGHT: "light-root"}
"""The step that makes each root."""


PATIENCE_S = 0.5
"""After that long a step is said to be under way."""


def build_all(progress: Callable[[str], None]) -> dict[str, Path]:
    """Build all that is missing: `xenvirtio lab build`. Gives the path of each step's artifact by name.

    Raises:
        ConfigurationError: a host program is missing. ResourceError: a step failed.
    """
    return _build(STEPS, progress)


def build_images(options: MachineOptions, progress: Callable[[str], None]) -> Images:
    """Build what a machine with these options boots from, as far as it is missing; raises as `build_all`."""
    unused = {ROOTS[root] for root in Dom0Root if root is not options.root} | {"guest-python"}
    made = _build([step for step in STEPS if step[0] not in unused], progress)
    return Images(
        xen=made["xen"],
        linux=made["linux"],
        root=made[ROOTS[options.root]],
        guests=made["guests"],
        package=made["package"],
    )


def build_system_files(progress: Callable[[str], None]) -> None:
    """Build what a description may name without having it (`static_build.LAB_FILES`); raises as `build_all`."""
    _build([step for step in STEPS if step[0] in ("linux", "guest-initramfs", "guest-python")], progress)


def _build(
    steps: Sequence[tuple[str, str, Callable[[], Path]]], progress: Callable[[str], None]
) -> dict[str, Path]:
    """One line of `progress` for each step that has something to do, when it begins, and one with its time after."""
    check_host_tools()
    made: dict[str, Path] = {}
    for number, (name, description, build) in enumerate(steps, 1):
        # Only building tells whether there is anything to build, and that there is not takes no time.
        announcement = threading.Timer(PATIENCE_S, progress, [f"[{number}/{len(steps)}] {description}"])
        announcement.start()
        started = time.monotonic()
        try:
            made[name] = build()
        finally:
            announcement.cancel()
        took_s = time.monotonic() - started
        if took_s >= 1:
            progress(f"      done in {took_s:.0f} s")
    return made
