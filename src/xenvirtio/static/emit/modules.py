"""The boot modules: which file each domain boots from, and where it lies in memory when Xen starts.

A file that several domains boot from is loaded once. Addresses follow from the order of the domains and the sizes, so
the same files give the same addresses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from xenvirtio.static.host_map import place_modules
from xenvirtio.static.span import Span
from xenvirtio.static.system import System


class ModuleKind(Enum):
    """What Xen takes a module for (`multiboot,...`)."""

    KERNEL = "kernel"
    RAMDISK = "ramdisk"
    DEVICE_TREE = "device-tree"


@dataclass(frozen=True, slots=True)
class ModuleFile:
    """A domain's file, named as in the output folder."""

    domain: str
    kind: ModuleKind
    file: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Module:
    """A module with its place. `span` has the file's exact size, which Xen is told."""

    domain: str
    kind: ModuleKind
    file: str
    span: Span


def place(system: System, files: Sequence[ModuleFile]) -> list[Module]:
    """Give each file its address, in the order of `files`; one address for a file that is named several times."""
    places = place_modules(system.description, {file.file: file.size_bytes for file in files})
    return [Module(file.domain, file.kind, file.file, places[file.file]) for file in files]


def modules_of(modules: Sequence[Module], domain: str) -> Mapping[ModuleKind, Module]:
    """One domain's, by kind, in the order kernel, ramdisk, device tree."""
    found = {module.kind: module for module in modules if module.domain == domain}
    return {kind: found[kind] for kind in ModuleKind if kind in found}
