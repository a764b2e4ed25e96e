"""The import rule: arrows point down. Read from the sources (`.py` and `.pxd`), nothing is imported.

    wiring     cli control daemon bench lab doctor sandbox            may import everything
    cores      devices  virtio  virtqueue  memory  xenstore  ioreq    values in, values out: no I/O, clocks or threads
    hosts      xen  channels  resources                               the only ones that talk to the kernel
    ground     errors ids ... and plain access to our own memory      may be imported by everything

A row of `MAY_IMPORT` is the whole truth about its package; what it does not name is forbidden. A package without a row,
and an exception that nobody needs any more, fail too.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "xenvirtio"

GROUND = {"errors", "ids", "toml_table", "interpreted", "memory.raw", "memory.buffer"}

WIRING = {"cli", "control", "daemon", "frontend", "bench", "lab", "doctor", "sandbox"} | {
    "__init__",
    "__main__",
    "_build",
    "_engine_choice",
}

MAY_IMPORT: dict[str, set[str]] = {
    # cores
    "devices": {"virtio.device", "virtio.features", "virtqueue", "memory"},  # no transport, no resource, no Xen
    "virtio": {
        "virtio.transports.mmio_layout",
        "virtio.transports.msg_layout",
        "virtio.transports.msg_codec",
        "virtio.transports.msg_link",
        "virtqueue",
        "memory",
    },
    "virtio.transports": {"virtio", "virtqueue", "memory"},  # no device
    "virtqueue": {"memory"},
    "memory": {"xen.capabilities"},
    "ioreq": {"memory", "xen.capabilities"},
    "xenstore": set(),
    # device ids, register offsets and a release of Xen: values
    "static": {"virtio.device", "virtio.transports.mmio_layout", "xen.capabilities"},
    "metadata": {"static.plan", "xenstore", "channels", "xen.capabilities"},  # one directory, over each of them
    # hosts
    "xen": set(),  # capabilities, and what the two implementations share
    "xen.linux": {"xen"},
    "xen.emulated": {"xen"},
    "channels": {"xen.capabilities"},  # Argo, and rings that a hypervisor shows
    "resources": set(),
}

CORES = {"devices", "virtio", "virtio.transports", "virtqueue", "memory", "ioreq", "xenstore", "static"}

OUTSIDE = {
    "sockets": {"socket", "socketserver", "ssl", "select", "selectors", "asyncio"},
    "processes": {"subprocess", "multiprocessing", "signal"},
    "threads": {"threading", "concurrent", "queue"},
    "clocks": {"time", "datetime", "sched"},
    "system calls": {"os", "fcntl", "mmap", "ctypes"},
}
"""What a core does without, so that a test drives it with nothing to mock."""


@dataclass(frozen=True, slots=True)
class Exemption:
    imports: set[str]
    reason: str


EXEMPT: dict[str, Exemption] = {
    "memory.raw": Exemption({"ctypes", "threading"}, "the interpreted twin of raw.pxd: C calls; a lock for a fence"),
    "memory.buffer": Exemption({"ctypes", "mmap"}, "memory of our own at a fixed address"),
    "memory.foreign": Exemption(
        {"threading", "time"}, "a lock: all queues of a guest share its mapped chunks; the default of an injected clock"
    ),
    "virtio.queue_runner": Exemption({"threading"}, "a lock: pausing a queue between two batches"),
    "virtio.bounded_log": Exemption({"threading"}, "a lock: every queue reports through it"),
    "virtio.transports.lifecycle": Exemption({"threading"}, "a lock for the generation of configuration space"),
    "virtio.transports.mmio": Exemption({"time"}, "the default of an argument"),
    "virtio.transports.msg": Exemption({"time"}, "the default of an argument"),
    "virtio.transports.msg_bus": Exemption({"threading", "time"}, "a lock: queues send events; the default of a clock"),
    "virtio.msg_driver_bus": Exemption({"time"}, "the default of an argument"),
    "devices.block.driver": Exemption({"ctypes", "time"}, "the driver side, no device: fills buffers, and may wait"),
    "xenstore.client": Exemption(
        {"os", "select", "threading", "time", "channels"}, "pumps client_core over a channel for threads that wait"
    ),
    "xenstore.connect": Exemption({"os", "channels"}, "looks which way to XenStore this machine has"),
    "xenstore.open": Exemption({"time", "channels"}, "waits for a XenStore that comes late"),
    "xenstore.journal_file": Exemption({"os", "fcntl"}, "writes what journal encodes, before replies go out"),
    "xenstore.serve": Exemption(
        {"os", "socket", "threading", "concurrent", "time"}, "pumps the server core over its carriers"
    ),
    "xenstore.serve_poll": Exemption({"select"}, "waits for the carriers"),
    "xenstore.serve_socket": Exemption({"os", "socket"}, "a carrier: Unix sockets"),
    "xenstore.serve_ring": Exemption({"channels"}, "a carrier: the ring of a domain"),
    "xenstore.serve_xen": Exemption(
        {"ctypes", "time", "channels", "xen"}, "maps rings and binds event channels; waits for a predecessor's end"
    ),
}


@dataclass(frozen=True, slots=True)
class Module:
    """One source file; `name` and `imports` without the leading `xenvirtio.`, `outside` are top-level names."""

    name: str
    imports: frozenset[str]
    outside: frozenset[str]

    @property
    def package(self) -> str:
        """The row of `MAY_IMPORT` (or name in `WIRING`) that rules this module."""
        parts = self.name.split(".")
        return max(
            (".".join(parts[:n]) for n in (1, 2) if ".".join(parts[:n]) in MAY_IMPORT), default=parts[0], key=len
        )


def imported_names(path: Path) -> Iterator[str]:
    """Yield the full name of everything `path` imports, at any depth of its code."""
    if path.suffix == ".pxd":
        yield from re.findall(r"^\s*(?:from\s+(\S+)\s+cimport|cimport\s+\S+)", path.read_text(), re.M)
        return
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: imports are absolute here"
            # `from package import module` imports the module: ask for it by its own name
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if is_module(whole) else str(node.module)


def is_module(name: str) -> bool:
    place = SOURCE.parent.joinpath(*name.split("."))
    return place.with_suffix(".py").is_file() or place.is_dir()


def read_module(path: Path) -> Module:
    name = ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__")
    names = [imported for imported in imported_names(path) if imported]
    ours = frozenset(n.removeprefix("xenvirtio.") for n in names if n.startswith("xenvirtio."))
    return Module(name, ours, frozenset(n.split(".")[0] for n in names if n.split(".")[0] != "xenvirtio"))


MODULES = sorted((read_module(path) for path in SOURCE.rglob("*.p[yx]*") if path.suffix in (".py", ".pxd")), key=str)


def is_within(name: str, allowed: set[str]) -> bool:
    return any(name == package or name.startswith(package + ".") for package in allowed)


def upward(module: Module) -> list[str]:
    """Imports that the row of the module's package (and its exemption) do not allow."""
    exempt = EXEMPT[module.name].imports if module.name in EXEMPT else set()
    allowed = MAY_IMPORT[module.package]
    found = []
    for name in module.imports:
        package = Module(name, frozenset(), frozenset()).package
        by_row = package == module.package or package in allowed or is_within(name, allowed - MAY_IMPORT.keys())
        if not (by_row or is_within(name, GROUND | exempt)):
            found.append(name)
    return sorted(found)


def unclean(module: Module) -> list[str]:
    exempt = EXEMPT[module.name].imports if module.name in EXEMPT else set()
    return sorted(module.outside & set().union(*OUTSIDE.values()) - exempt)


RULED = [module for module in MODULES if module.package not in WIRING and module.name not in GROUND]


@pytest.mark.parametrize("module", RULED, ids=lambda module: module.name)
def test_arrows_point_down(module: Module) -> None:
    assert module.package in MAY_IMPORT, "a new package needs a row in MAY_IMPORT, or a place in WIRING"
    assert upward(module) == [], f"{module.name} may import {sorted(MAY_IMPORT[module.package] | GROUND)}"


@pytest.mark.parametrize(
    "module", [module for module in RULED if module.package in CORES], ids=lambda module: module.name
)
def test_cores_do_no_input_or_output(module: Module) -> None:
    assert unclean(module) == [], f"{module.name} is a core: take a capability, clock or callable as an argument"


@pytest.mark.parametrize("module", [m for m in MODULES if m.name in GROUND], ids=lambda module: module.name)
def test_the_ground_stands_on_itself(module: Module) -> None:
    assert module.imports <= GROUND


def test_cores_see_capabilities_and_never_an_implementation() -> None:
    for package in CORES:
        assert {name for name in MAY_IMPORT[package] if name.split(".")[0] == "xen"} <= {"xen.capabilities"}


def test_devices_and_transports_do_not_know_each_other() -> None:
    assert not {name for name in MAY_IMPORT["devices"] if name.startswith(("virtio.transports", "xen", "ioreq"))}
    assert "virtio" not in MAY_IMPORT["devices"], "by module, or the transports would come with it"
    assert not {name for name in MAY_IMPORT["virtio.transports"] if name.startswith("devices")}


def test_every_package_has_its_place() -> None:
    assert {module.package for module in MODULES} <= MAY_IMPORT.keys() | WIRING | {
        name.split(".")[0] for name in GROUND
    }


@pytest.mark.parametrize("name", EXEMPT)
def test_every_exemption_is_needed(name: str) -> None:
    modules = [module for module in MODULES if module.name == name]
    assert modules, f"there is no {name}"
    used = {item for module in modules for item in module.outside | {n.split(".")[0] for n in module.imports}}
    assert EXEMPT[name].imports <= used
    assert EXEMPT[name].reason


@pytest.mark.parametrize(
    ("name", "imports", "found"),
    [
        ("devices.block.device", {"virtio.device", "memory.transfer", "errors", "devices.block.config"}, []),
        ("devices.block.device", {"virtio.transports.mmio"}, ["virtio.transports.mmio"]),
        ("devices.block.device", {"xen.capabilities", "ioreq.page"}, ["ioreq.page", "xen.capabilities"]),
        ("devices.block.device", {"resources.file"}, ["resources.file"]),
        ("virtio.transports.mmio", {"virtio.device", "devices.block"}, ["devices.block"]),
        ("virtio.status", {"virtio.transports.mmio", "virtio.features"}, ["virtio.transports.mmio"]),
        ("virtqueue.split", {"virtio.device"}, ["virtio.device"]),
        ("memory.grants", {"xen.capabilities", "xen.linux.gntdev"}, ["xen.linux.gntdev"]),
        ("ioreq.page", {"xen.emulated", "xen.linux"}, ["xen.emulated", "xen.linux"]),
        ("xen.linux.gntdev", {"xen.capabilities", "xen.emulated.host"}, ["xen.emulated.host"]),
        ("xen.capabilities", {"xen.linux"}, ["xen.linux"]),
        ("xenstore.tree", {"channels.unix_socket"}, ["channels.unix_socket"]),
        ("xenstore.client", {"channels.unix_socket"}, []),
        ("resources.file", {"memory.raw", "memory.grants"}, ["memory.grants"]),
        ("channels.unix_socket", {"daemon.guest"}, ["daemon.guest"]),
    ],
)
def test_the_rule_itself(name: str, imports: set[str], found: list[str]) -> None:
    assert upward(Module(name, frozenset(imports), frozenset())) == found


def test_every_way_to_import_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "x.py"
    path.write_text(
        "import socket\nfrom xenvirtio import daemon, __version__\nfrom xenvirtio.xen import linux\n"
        "def f():\n    import xenvirtio.cli.main\n    from time import sleep\n"
    )
    expected = {"socket", "xenvirtio.daemon", "xenvirtio", "xenvirtio.xen.linux", "xenvirtio.cli.main", "time"}
    assert set(imported_names(path)) == expected
    path = tmp_path / "x.pxd"
    path.write_text("cimport cython\nfrom xenvirtio.memory.raw cimport fence\n")
    assert "xenvirtio.memory.raw" in set(imported_names(path))
