"""A statically partitioned system as `xenvirtio static build` wrote it: read from `boot.toml`.

    format = 1
    host_tree = "host.dtb"                 # QEMU's tree with its /chosen replaced
    xen_arguments = "dom0_mem=768M ..."    # for those who read: the tree has them too

    [[module]]
    domain = "dom0"
    kind = "kernel"                        # "ramdisk", "device-tree"
    file = "Image"                         # relative to boot.toml, or absolute
    address = 0x49000000                   # where the tree says that it lies
    size = 9437184                         # its exact size
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from xenvirtio.errors import ConfigurationError
from xenvirtio.toml_table import Table, between, load_toml, one_of

BOOT_FILE = "boot.toml"
BOOT_FORMAT = 1
KINDS = ("kernel", "ramdisk", "device-tree")
ADDRESS_MAX = (1 << 48) - 1


@dataclass(frozen=True, slots=True)
class Module:
    """A file that lies in memory when Xen starts."""

    domain: str
    kind: str
    file: Path
    address: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class BuiltSystem:
    """All that is to be loaded beside Xen. `modules` may name a file at one address several times."""

    folder: Path
    host_tree: Path
    modules: tuple[Module, ...]

    def loads(self) -> dict[int, Path]:
        """The file for each address; domains may share one."""
        return {module.address: module.file for module in self.modules}

    def has_dom0(self) -> bool:
        """Whether there is a dom0, whose agent answers."""
        return any(module.domain == "dom0" for module in self.modules)


def read_built_system(folder: Path) -> BuiltSystem:
    """Read what a static build left in `folder`.

    Raises:
        ConfigurationError: no `boot.toml`, a wrong key or value, a file that is missing or not as big as the tree says.
    """
    top = load_toml(folder / BOOT_FILE)
    top.need("format", int, check=between(BOOT_FORMAT, BOOT_FORMAT))
    top.optional("xen_arguments", str)
    host_tree = _file(top, folder, "host_tree")
    modules = tuple(_module(table, folder) for table in top.tables("module"))
    top.finish()
    files: dict[int, Path] = {}
    for module in modules:
        other = files.setdefault(module.address, module.file)
        if other != module.file:
            raise ConfigurationError(
                f"{top.where}: address {module.address:#x}", f"both {other} and {module.file} are to lie there"
            )
    return BuiltSystem(folder, host_tree, modules)


def _module(table: Table, folder: Path) -> Module:
    module = Module(
        domain=table.need("domain", str),
        kind=table.need("kind", str, check=one_of(KINDS)),
        file=_file(table, folder, "file"),
        address=table.need("address", int, check=between(1, ADDRESS_MAX)),
        size_bytes=table.need("size", int, check=between(1, ADDRESS_MAX)),
    )
    table.finish()
    found = module.file.stat().st_size
    if found != module.size_bytes:
        raise ConfigurationError(
            f"{table.where}: size",
            f"{module.file} has {found} bytes, the tree says {module.size_bytes}",
            "run 'xenvirtio static build' again",
        )
    return module


def _file(table: Table, folder: Path, key: str) -> Path:
    path = folder / str(table.need(key, str))
    if not path.is_file():
        raise ConfigurationError(f"{table.where}: {key}", f"there is no file {path}", "run 'xenvirtio static build'")
    return path
