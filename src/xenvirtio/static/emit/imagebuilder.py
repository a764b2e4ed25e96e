"""ImageBuilder's configuration (a file that bash sources), and the U-Boot commands for what it has no keys for.

Only keys of ImageBuilder's README are used. Its one shared region per domain, its channels between two domUs only, and
nothing for dom0 are too little for us, so all regions and channels come by APPEND_EXTRA_CMDS: commands that its script
runs behind its own, on the tree whose domains are /chosen/domU0, domU1 ...
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from xenvirtio.static.description import Domain, Enhanced
from xenvirtio.static.emit.chosen import MIB, bootargs, chosen_node, xen_arguments
from xenvirtio.static.emit.modules import Module, ModuleKind, modules_of
from xenvirtio.static.emit.shell import bash_quoted
from xenvirtio.static.span import Span
from xenvirtio.static.system import System
from xenvirtio.static.tree import Cells, Node, Reference, Texts, Value

EXTRA_COMMANDS = "imagebuilder-extra.cmds"
_ENHANCED = {Enhanced.DISABLED: 0, Enhanced.ENABLED: 1, Enhanced.NO_XENSTORE: 2}
_PHANDLE_LAST = 0xFFFFFF00
"""The first of ours, going down: ImageBuilder takes its own from 0xfffffffe downwards, dtc from 1 upwards."""

_HEADER = """\
# ImageBuilder: bash imagebuilder/scripts/uboot-script-gen -c imagebuilder.cfg -d . -t tftp
# Run it in this folder. Xen's binary (XEN) is to be put here; everything else that is named lies here.
"""


def variables(system: System, modules: Sequence[Module], machine_tree: str) -> Mapping[str, str]:
    """The configuration's variables; `NAME[0]` is an element of an array."""
    description, settings = system.description, system.description.imagebuilder
    bank = min(description.host.memory)
    found = {
        "MEMORY_START": f"{bank.address if settings.memory_start is None else settings.memory_start:#x}",
        "MEMORY_END": f"{bank.end if settings.memory_end is None else settings.memory_end:#x}",
        "LOAD_CMD": settings.load_command,
        "BOOT_CMD": settings.boot_command,
        "DEVICE_TREE": settings.device_tree or machine_tree,
        "XEN": description.xen_image,
        "XEN_CMD": xen_arguments(system),
        "UBOOT_SOURCE": settings.uboot_source,
        "UBOOT_SCRIPT": settings.uboot_script,
        "APPEND_EXTRA_CMDS": EXTRA_COMMANDS,
    }
    if description.static_heap:
        found["XEN_STATIC_HEAP"] = _spans(description.static_heap)
    if description.dom0 is not None:
        found |= _dom0(description.dom0, modules_of(modules, description.dom0.name))
    guests = _guests(system)
    found["NUM_DOMUS"] = str(len(guests))
    for number, domain in enumerate(guests):
        for key, value in _guest(system, domain, modules_of(modules, domain.name)).items():
            found[f"{key}[{number}]"] = value
    return found


def configuration(system: System, modules: Sequence[Module], machine_tree: str) -> str:
    """imagebuilder.cfg."""
    lines = [f"{key}={bash_quoted(value)}" for key, value in variables(system, modules, machine_tree).items()]
    return _HEADER + "\n".join(lines) + "\n"


def extra_commands(system: System, modules: Sequence[Module]) -> str:
    """The U-Boot commands: nodes for regions and channels, and properties that have no key."""
    chosen = chosen_node(system, modules)
    labels = _labels(system, chosen)
    phandles = {label: _PHANDLE_LAST - number for number, label in enumerate(labels)}
    lines = []
    if system.description.dom0 is not None:
        lines += _new_nodes("/chosen", chosen, phandles)
    for number, domain in enumerate(_guests(system)):
        path, node = f"/chosen/domU{number}", chosen.child(domain.name)
        lines += [_set(path, key, node.properties[key], phandles) for key in _unsaid(domain)]
        lines += _new_nodes(path, node, phandles)
    return "".join(f"{line}\n" for line in lines)


def _guests(system: System) -> list[Domain]:
    return [domain for domain in system.domains if not domain.is_dom0]


def _dom0(domain: Domain, modules: Mapping[ModuleKind, Module]) -> dict[str, str]:
    found = {
        "DOM0_KERNEL": modules[ModuleKind.KERNEL].file,
        "DOM0_CMD": domain.arguments,
        "DOM0_MEM": str(domain.memory_bytes // MIB),
        "DOM0_VCPUS": str(domain.vcpus),
    }
    if ModuleKind.RAMDISK in modules:
        found["DOM0_RAMDISK"] = modules[ModuleKind.RAMDISK].file
    return found


def _guest(system: System, domain: Domain, modules: Mapping[ModuleKind, Module]) -> dict[str, str]:
    found = {
        "DOMU_KERNEL": modules[ModuleKind.KERNEL].file,
        "DOMU_CMD": bootargs(system, domain),
        "DOMU_MEM": str(domain.memory_bytes // MIB),
        "DOMU_VCPUS": str(domain.vcpus),
        "DOMU_VPL011": str(int(domain.vpl011)),
        "DOMU_ENHANCED": str(_ENHANCED.get(domain.enhanced, 1)),
    }
    for kind, key in ((ModuleKind.RAMDISK, "DOMU_RAMDISK"), (ModuleKind.DEVICE_TREE, "DOMU_PASSTHROUGH_DTB")):
        if kind in modules:
            found[key] = modules[kind].file
    if domain.static_memory:
        found["DOMU_STATIC_MEM"] = _spans(domain.static_memory)
        found["DOMU_DIRECT_MAP"] = str(int(domain.direct_map))
    if domain.spis is not None:
        found["DOMU_NR_SPIS"] = str(domain.spis)
    if domain.grant_frames is not None:
        found["DOMU_GRANT_FRAMES"] = str(domain.grant_frames)
    if domain.capabilities:
        found["DOMU_CAPS"] = "|".join(domain.capabilities)
    if not domain.trap_unmapped_accesses:
        found["DOMU_TRAP_UNMAP"] = "0"
    return found


def _unsaid(domain: Domain) -> list[str]:
    """Properties of a domain that its keys do not say, or not exactly."""
    found = ["memory"] if domain.memory_bytes % MIB else []
    return found + (["xen,enhanced"] if domain.enhanced is Enhanced.LEGACY else [])


def _spans(spans: Sequence[Span]) -> str:
    return " ".join(f"{span.address:#x} {span.size_bytes:#x}" for span in spans)


def _is_ours(node: Node) -> bool:
    """A region or a channel, not a module or a domain."""
    compatible = node.properties["compatible"]
    return isinstance(compatible, Texts) and compatible.values[0] in ("xen,domain-shared-memory-v1", "xen,evtchn-v1")


def _labels(system: System, chosen: Node) -> list[str]:
    nodes = [chosen, *(chosen.child(domain.name) for domain in _guests(system))]
    return [child.label for node in nodes for child in node.children if child.label]


def _new_nodes(path: str, parent: Node, phandles: Mapping[str, int]) -> list[str]:
    lines = []
    for node in filter(_is_ours, parent.children):
        place = f"{path}/{node.name}"
        lines.append(f"fdt mknod {path} {node.name}")
        lines += [_set(place, name, value, phandles) for name, value in node.properties.items()]
        if node.label:
            lines.append(f"fdt set {place} phandle <{phandles[node.label]:#x}>")
    return lines


def _set(path: str, name: str, value: Value, phandles: Mapping[str, int]) -> str:
    """None of these texts has a character that U-Boot's shell would see: they are ours, and identifiers."""
    if isinstance(value, Texts):
        return f"fdt set {path} {name} " + " ".join(f'"{text}"' for text in value.values)
    return f"fdt set {path} {name} <{' '.join(_number(value, phandles))}>"


def _number(value: Cells, phandles: Mapping[str, int]) -> list[str]:
    return [f"{phandles[n.label] if isinstance(n, Reference) else n:#x}" for n in value.values]
