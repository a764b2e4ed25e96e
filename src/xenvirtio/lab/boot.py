"""From nothing to a machine: builds what it boots from, starts it, waits for dom0."""

from __future__ import annotations

import time
from collections.abc import Callable

from xenvirtio.lab import machine
from xenvirtio.lab.build import build_images
from xenvirtio.lab.machine import Machine
from xenvirtio.lab.options import MachineOptions

Progress = Callable[[str], None]


def start(options: MachineOptions, name: str, progress: Progress) -> Machine:
    """Build what is missing and start a machine; `Machine.wait_until_up` waits for its dom0.

    Raises:
        ConfigurationError: a host program is missing.
        ResourceError: a build failed, one of that name runs already, or QEMU does not start.
    """
    images = build_images(options, progress)
    progress("booting" if name == "default" else f"booting machine {name!r}")
    return machine.start(images, name, options)


def boot(options: MachineOptions, name: str, progress: Progress) -> Machine:
    """Start a machine and wait until it can be used; one that does not come up is stopped again.

    Raises:
        ConfigurationError, ResourceError: as `start`, and when dom0 does not come up.
    """
    running = start(options, name, progress)
    started = time.monotonic()
    try:
        wait_usable(running, options)
    except BaseException:
        running.stop(at_once=True)
        raise
    progress(f"booted in {time.monotonic() - started:.0f} s")
    return running


def wait_usable(running: Machine, options: MachineOptions) -> None:
    """Wait for dom0, if there is one, and unpack over its root what a static build made for it: it has no ramdisk.

    Raises:
        ResourceError: dom0 does not come up.
    """
    if options.system is None:
        running.wait_until_up()
    elif options.system.has_dom0():
        dom0 = running.wait_until_up()
        files = options.system.folder / DOM0_FILES
        if files.is_file():
            dom0.copy_in(files, _ARCHIVE)
            dom0.run(f"cd / && zcat {_ARCHIVE} | cpio -idmu")


DOM0_FILES = "dom0/files.cpio.gz"
"""What a static build made for dom0's root: its plan, backends.toml, the description's `files`."""

_ARCHIVE = "/run/lab/dom0-files.cpio.gz"
