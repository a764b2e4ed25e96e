"""`boot.toml`: what is to be loaded, and where, for a boot loader that is a program: the lab, a test bench.

    format = 1
    host_tree = "host.dtb"
    xen_arguments = "dom0_mem=786432K ..."

    [[module]]
    domain = "dom0"
    kind = "kernel"                # or "ramdisk", "device-tree"
    file = "modules/Image"         # relative to this file
    address = 0x49000000
    size = 9437184                 # exactly the file's

A file that several domains boot from is named once for each, with the same address.
"""

from __future__ import annotations

from collections.abc import Sequence

from xenvirtio.static.emit.modules import Module
from xenvirtio.toml_table import toml_text

BOOT_FORMAT = 1


def boot_file(modules: Sequence[Module], host_tree: str, xen_arguments: str) -> str:
    lines = [
        f"format = {BOOT_FORMAT}",
        f"host_tree = {toml_text(host_tree)}",
        f"xen_arguments = {toml_text(xen_arguments)}",
    ]
    for module in modules:
        lines += ["", "[[module]]", f"domain = {toml_text(module.domain)}", f"kind = {toml_text(module.kind.value)}"]
        lines += [f"file = {toml_text(module.file)}", f"address = {module.span.address:#x}"]
        lines.append(f"size = {module.span.size_bytes}")
    return "\n".join(lines) + "\n"
