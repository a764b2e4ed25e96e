"""A system and its input files into everything that `static build` writes, all in memory."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from xenvirtio.daemon.configuration import SERVED_TYPES
from xenvirtio.errors import ConfigurationError
from xenvirtio.resources.device_tree import TreeReader, compile_tree, read_host_source
from xenvirtio.static.description import DOM0, Domain, Os
from xenvirtio.static.emit import backends, boot, imagebuilder, linux, yocto, zephyr
from xenvirtio.static.emit.chosen import HostTree, bare_chosen_node, chosen_node, xen_arguments
from xenvirtio.static.emit.modules import Module, ModuleFile, ModuleKind, place
from xenvirtio.static.emit.passthrough import mmio_devices, passthrough_tree
from xenvirtio.static.emit.readme import README, readme
from xenvirtio.static.gate import wrap
from xenvirtio.static.plan import encode_plan
from xenvirtio.static.system import System
from xenvirtio.static.tree import source_of, with_chosen

Progress = Callable[[str], None]
MACHINE_TREE = "machine.dtb"
FILE_BYTES_MAX = 1 << 30
"""A kernel or ramdisk beyond that does not fit the memory that is loaded into."""
_UNSAFE = re.compile(r"[^A-Za-z0-9._+-]+", re.ASCII)


@dataclass(slots=True)
class Output:
    """The folder's files by path, and the boot modules among them with their places."""

    files: dict[str, bytes] = field(default_factory=dict)
    modules: list[Module] = field(default_factory=list)

    def add_text(self, path: str, text: str) -> None:
        self.files[path] = text.encode()


class Inputs:
    """The files that a description names, looked for in some folders, each read once."""

    def __init__(self, source: str, folders: list[Path]) -> None:
        self._source = source
        self._folders = folders
        self._read: dict[str, bytes] = {}

    def find(self, name: str, where: str) -> Path:
        """Raises ConfigurationError: in none of the folders."""
        for folder in self._folders:
            try:
                if (folder / name).is_file():
                    return folder / name
            except OSError as error:  # a name that is too long, a folder that is closed to us
                raise ConfigurationError(f"{self._source}: {where}", error.strerror or str(error)) from error
        searched = ", ".join(str(folder) for folder in self._folders)
        raise ConfigurationError(f"{self._source}: {where}", f"there is no file {name!r}", f"searched in {searched}")

    def read(self, name: str, where: str) -> bytes:
        """Raises ConfigurationError: in none of the folders, unreadable, or too large."""
        if name not in self._read:
            path = self.find(name, where)
            try:
                if path.stat().st_size > FILE_BYTES_MAX:
                    raise ConfigurationError(str(path), f"larger than {FILE_BYTES_MAX} bytes")
                self._read[name] = path.read_bytes()
            except OSError as error:
                raise ConfigurationError(str(path), error.strerror or str(error)) from error
        return self._read[name]


def assemble(system: System, inputs: Inputs, host_tree: Path, progress: Progress) -> Output:
    """Make everything.

    Raises:
        ConfigurationError: an input is missing or not what it should be. ResourceError: dtc refuses a tree.
    """
    output = Output()
    files = _module_files(system, inputs, output, progress)
    output.modules = place(system, files)
    progress(f"reading {host_tree}")
    source, blob = read_host_source(host_tree)
    host = _host_tree(blob, host_tree)
    whole = with_chosen(source, chosen_node(system, output.modules, host))
    output.add_text("host.dts", whole)
    progress("compiling host.dtb")
    output.files["host.dtb"] = compile_tree(whole, "host.dts")
    output.files[MACHINE_TREE] = compile_tree(with_chosen(source, bare_chosen_node(system, host)), MACHINE_TREE)
    output.add_text("boot.toml", boot.boot_file(output.modules, "host.dtb", xen_arguments(system)))
    output.add_text("backends.toml", backends.backends_file(system, DOM0, SERVED_TYPES.values()))
    output.add_text("imagebuilder.cfg", imagebuilder.configuration(system, output.modules, MACHINE_TREE))
    output.add_text(imagebuilder.EXTRA_COMMANDS, imagebuilder.extra_commands(system, output.modules))
    output.add_text("xenvirtio.inc", yocto.include_file(system, output.modules, MACHINE_TREE))
    output.add_text(README, readme(system, output.files))
    return output


def _module_files(system: System, inputs: Inputs, output: Output, progress: Progress) -> list[ModuleFile]:
    found = []
    for domain in system.domains:
        for kind, name, content in _domain_modules(system, domain, inputs, output, progress):
            path = _module_path(output, domain, name, content)
            output.files[path] = content
            found.append(ModuleFile(domain.name, kind, path, len(content)))
    return found


def _domain_modules(
    system: System, domain: Domain, inputs: Inputs, output: Output, progress: Progress
) -> list[tuple[ModuleKind, str, bytes]]:
    """A domain's modules as (kind, name to be called by, content); its other files go into `output`."""
    found = [(ModuleKind.KERNEL, *_kernel(system, domain, inputs, progress))]
    output.add_text(f"{domain.name}/plan.toml", encode_plan(system.plan_of(domain.name)))
    if backends.serves(system, domain.name) and not domain.is_dom0:
        output.add_text(
            f"{domain.name}/backends.toml", backends.backends_file(system, domain.name, SERVED_TYPES.values())
        )
    if domain.os is Os.ZEPHYR:
        output.add_text(f"{domain.name}/xenvirtio.h", zephyr.header(system.plan_of(domain.name)))
        output.add_text(f"{domain.name}/xenvirtio.overlay", zephyr.overlay(system, domain.name))
        output.add_text(f"{domain.name}/xenvirtio.conf", zephyr.configuration(system, domain.name))
    files: Mapping[str, bytes] = {}
    if domain.os is Os.LINUX:
        described = {target: inputs.read(name, f"{domain.where} files") for target, name in domain.files.items()}
        files = linux.domain_files(system, domain, described, SERVED_TYPES.values())
        output.files[f"{domain.name}/files.cpio.gz"] = linux.archive(files)
    if domain.ramdisk is not None:
        content = inputs.read(domain.ramdisk, f"{domain.where} ramdisk")
        name = _base(domain.ramdisk)
        if files:
            progress(f"{domain.name}: adding {len(files)} files to {name}")
            content, name = linux.extend_ramdisk(content, files, domain.ramdisk), f"{domain.name}-{name}"
        found.append((ModuleKind.RAMDISK, name, content))
    tree = passthrough_tree(system, domain)
    if tree is not None and not domain.is_dom0:
        source = source_of(tree)
        output.add_text(f"{domain.name}/passthrough.dts", source)
        blob = compile_tree(source, f"{domain.name}/passthrough.dts")
        found.append((ModuleKind.DEVICE_TREE, f"{domain.name}-passthrough.dtb", blob))
    return found


def _kernel(system: System, domain: Domain, inputs: Inputs, progress: Progress) -> tuple[str, bytes]:
    name, content = _base(domain.kernel), inputs.read(domain.kernel, f"{domain.where} kernel")
    windows = [device.base for device in mmio_devices(system, domain.name)] if domain.gate else []
    if not windows:
        return name, content
    progress(f"{domain.name}: a gate for {name} that waits for {len(windows)} device{'s' * (len(windows) != 1)}")
    return f"{name}-gated", wrap(content, windows, f"{domain.where} kernel {domain.kernel}")


def _base(name: str) -> str:
    """The last part of a file's name, of characters that no shell, loader or recipe takes amiss."""
    return _UNSAFE.sub("_", Path(name).name).lstrip(".-") or "file"


def _module_path(output: Output, domain: Domain, name: str, content: bytes) -> str:
    """Where a module goes: the same content under the same name once, different contents apart."""
    number = 1
    path = wanted = f"modules/{name}"
    while output.files.get(path, content) != content:
        number += 1
        path = f"{wanted}-{domain.name}" if number == 2 else f"{wanted}-{domain.name}-{number}"
    return path


def _host_tree(blob: bytes, path: Path) -> HostTree:
    reader = TreeReader(blob, str(path))
    widths = [reader.cells("/", name) for name in ("#address-cells", "#size-cells")]
    address_cells, size_cells = (width[0] if width else 2 - index for index, width in enumerate(widths))
    for width in (address_cells, size_cells):
        if width not in (1, 2):
            raise ConfigurationError(str(path), f"its root has {width} cells for a number", "allowed: 1 or 2")
    stdout = reader.texts("/chosen", "stdout-path") if "chosen" in reader.children("/") else None
    return HostTree(address_cells, size_cells, stdout[0] if stdout else "")
