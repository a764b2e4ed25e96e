"""The host tree's /chosen: what Xen builds its domains from.

Source: xen/docs/misc/arm/device-tree/booting.txt; xen/arch/arm/{dom0less-build,static-shmem,static-evtchn}.c; on real
Xen each kind of node was seen at work.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from xenvirtio.static.description import CAPABILITIES, Domain, Enhanced
from xenvirtio.static.emit.modules import Module, ModuleKind, modules_of
from xenvirtio.static.emit.passthrough import UIO_COMPATIBLE, has_uio_nodes
from xenvirtio.static.span import Span
from xenvirtio.static.system import ChannelEnd, ChannelPair, SharedRegion, System
from xenvirtio.static.tree import EMPTY, TWO_CELLS, Cells, Node, Reference, Value, cells, texts, wide

UIO_ARGUMENT = "uio_pdrv_genirq.of_id"
KIB, MIB = 1 << 10, 1 << 20


@dataclass(frozen=True, slots=True)
class HostTree:
    """What matters of the tree that the machine has: cells of its root, and its console."""

    address_cells: int = 2
    size_cells: int = 2
    stdout_path: str = ""


DEFAULT_HOST = HostTree()


def xen_arguments(system: System) -> str:
    """Xen's command line: as described, with dom0's size where that says nothing of it."""
    arguments = system.description.xen_arguments.split()
    dom0 = system.description.dom0
    named = {argument.partition("=")[0] for argument in arguments}
    if dom0 is not None and "dom0_max_vcpus" not in named:
        arguments.insert(0, f"dom0_max_vcpus={dom0.vcpus}")
    if dom0 is not None and "dom0_mem" not in named:
        arguments.insert(0, f"dom0_mem={dom0.memory_bytes // KIB}K")
    return " ".join(arguments)


def bootargs(system: System, domain: Domain) -> str:
    """A kernel's command line: as described, and what Linux's UIO driver must be told where memory is mapped so."""
    needed = f"{UIO_ARGUMENT}={UIO_COMPATIBLE}"
    if not has_uio_nodes(system, domain) or UIO_ARGUMENT in domain.arguments:
        return domain.arguments
    return f"{domain.arguments} {needed}".strip()


def bare_chosen_node(system: System, host: HostTree) -> Node:
    """The node with the console alone: nothing of who booted before, no seeds that differ with each look."""
    console = system.description.host.console or host.stdout_path
    return Node("chosen", {"stdout-path": texts(console)} if console else {})


def chosen_node(system: System, modules: Sequence[Module], host: HostTree = DEFAULT_HOST) -> Node:
    """The whole node, all labels it refers to included."""
    description = system.description
    properties = {**TWO_CELLS, **bare_chosen_node(system, host).properties}
    properties["xen,xen-bootargs"] = texts(xen_arguments(system))
    if description.static_heap:
        # Xen reads this one in the root's cells, not in those of /chosen
        widths = (host.address_cells, host.size_cells)
        properties["xen,static-heap"] = _spans(description.static_heap, *widths)
    children: list[Node] = []
    for domain in system.domains:
        inner = [*_module_nodes(system, domain, modules_of(modules, domain.name)), *_meeting_nodes(system, domain)]
        children += inner if domain.is_dom0 else [Node(domain.name, _domain_properties(domain), inner)]
    return Node("chosen", properties, children)


def _domain_properties(domain: Domain) -> Mapping[str, Value]:
    found: dict[str, Value] = {"compatible": texts("xen,domain"), **TWO_CELLS}
    found["cpus"] = cells(domain.vcpus)
    found["memory"] = wide(domain.memory_bytes // KIB)
    if domain.static_memory:
        found["xen,static-mem"] = _spans(domain.static_memory, 2, 2)
    if domain.direct_map:
        found["direct-map"] = EMPTY
    if domain.enhanced is not Enhanced.DISABLED:
        found["xen,enhanced"] = texts(domain.enhanced.value)
    if domain.vpl011:
        found["vpl011"] = EMPTY
    if domain.spis is not None:
        found["nr_spis"] = cells(domain.spis)
    if domain.grant_frames is not None:
        found["max_grant_frames"] = cells(domain.grant_frames)
    if domain.capabilities:
        found["capabilities"] = cells(sum(CAPABILITIES[name] for name in domain.capabilities))
    if not domain.trap_unmapped_accesses:
        found["trap-unmapped-accesses"] = cells(0)
    return found


def _module_nodes(system: System, domain: Domain, modules: Mapping[ModuleKind, Module]) -> list[Node]:
    nodes = []
    for kind, module in modules.items():
        properties: dict[str, Value] = {
            "compatible": texts(f"multiboot,{kind.value}", "multiboot,module"),
            "reg": _spans([module.span], 2, 2),
        }
        if kind is ModuleKind.KERNEL and bootargs(system, domain):
            properties["bootargs"] = texts(bootargs(system, domain))
        nodes.append(Node(f"module@{module.span.address:x}", properties))
    return nodes


def _meeting_nodes(system: System, domain: Domain) -> list[Node]:
    """Shared memory and event channels."""
    regions = [_region_node(region, domain.name) for region in system.regions_of(domain.name)]
    channels = [
        _channel_node(number, channel, domain.name)
        for number, channel in enumerate(system.channels)
        if channel.end_of(domain.name)
    ]
    return regions + channels


def _region_node(region: SharedRegion, domain: str) -> Node:
    addresses = [] if region.host is None else [region.host]
    properties: dict[str, Value] = {
        "compatible": texts("xen,domain-shared-memory-v1"),
        "xen,shm-id": texts(region.id),
        "xen,shared-mem": wide(*addresses, region.guests[domain], region.size_bytes),
    }
    if region.owner is not None:
        properties["role"] = texts("owner" if region.owner == domain else "borrower")
    return Node(f"shared-memory-{region.guests[domain]:x}", properties)


def _channel_node(number: int, channel: ChannelPair, domain: str) -> Node:
    own, peer = channel.end_of(domain), channel.peer_of(domain)
    assert own is not None
    properties: dict[str, Value] = {
        "compatible": texts("xen,evtchn-v1"),
        "xen,evtchn": cells(own.port, Reference(_label(number, channel, peer))),
    }
    return Node(f"event-channel-{own.port}", properties, label=_label(number, channel, own))


def _label(number: int, channel: ChannelPair, end: ChannelEnd) -> str:
    return f"channel{number}_{channel.ends.index(end)}"


def _spans(spans: Sequence[Span], address_cells: int, size_cells: int) -> Cells:
    """Ranges with these numbers of cells for address and size."""
    values: list[int | Reference] = []
    for span in spans:
        for number, width in ((span.address, address_cells), (span.size_bytes, size_cells)):
            values += [number >> 32, number & 0xFFFFFFFF] if width == 2 else [number]
    return Cells(tuple(values))
