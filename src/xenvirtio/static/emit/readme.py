"""README.txt of the output folder: what each file is for, and what to do next."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import PurePath

from xenvirtio.static.system import System

README = "README.txt"

_PURPOSES = (
    ("host.dtb", "the machine's tree with Xen's /chosen: give it to Xen as its device tree"),
    ("host.dts", "its source, for reading and for dtc"),
    ("machine.dtb", "the machine's tree with an empty /chosen, which ImageBuilder fills"),
    ("boot.toml", "which file lies where when Xen starts; the addresses are those in host.dtb"),
    ("backends.toml", "for dom0: xenvirtio serve backends.toml"),
    ("imagebuilder.cfg", "ImageBuilder: uboot-script-gen -c imagebuilder.cfg -d . -t tftp"),
    ("imagebuilder-extra.cmds", "U-Boot commands that imagebuilder.cfg names: shared memory and event channels"),
    ("xenvirtio.inc", "Yocto: require xenvirtio.inc"),
    ("modules/*", "a boot module, as boot.toml and host.dtb name it"),
    ("*/plan.toml", "/etc/xenvirtio/plan.toml of that domain"),
    ("*/backends.toml", "/etc/xenvirtio/backends.toml of that domain: xenvirtio msg serve --config"),
    ("*/files.cpio.gz", "what belongs into that domain's root: plan.toml, backends.toml, the description's files"),
    ("*/passthrough.dts", "source of that domain's partial tree"),
    ("*/xenvirtio.h", "Zephyr: the plan as constants"),
    ("*/xenvirtio.overlay", "Zephyr: west build ... -- -DEXTRA_DTC_OVERLAY_FILE=xenvirtio.overlay"),
    ("*/xenvirtio.conf", "Zephyr: west build ... -- -DEXTRA_CONF_FILE=xenvirtio.conf"),
)


def readme(system: System, paths: Iterable[str]) -> str:
    """One line for each of the folder's files, then where to go on."""
    description = system.description
    names = sorted(paths)
    width = max(len(name) for name in names)
    lines = [
        f"{description.name}, for Xen {description.xen}, generation {system.generation}",
        f"Made by xenvirtio static build from {PurePath(description.source).name}: change that, not these.",
        "",
        *(f"{name:{width}}  {_purpose(name)}" for name in names),
        "",
        "Domains, by domid:",
        *(f"{domid:5}  {name}" for name, domid in system.domids.items()),
        "",
        "In QEMU with Xen as -kernel, host.dtb as -dtb, and for each address of boot.toml once",
        "  -device loader,file=FILE,addr=ADDRESS,force-raw=on",
        "A ramdisk in modules/ has its domain's plan inside already. A domain without a ramdisk needs files.cpio.gz",
        "unpacked into its root by whoever makes that.",
    ]
    return "\n".join(lines) + "\n"


def _purpose(path: str) -> str:
    return next((purpose for pattern, purpose in _PURPOSES if fnmatchcase(path, pattern)), "")
