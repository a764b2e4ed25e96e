"""What a drawing of a system shows: one column of blocks for the host and one for each domain."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from xenvirtio.static.check.memory import xen_bytes
from xenvirtio.static.description import Domain
from xenvirtio.static.guest_map import VIRTIO_SLOT_BYTES, ram, xen_windows
from xenvirtio.static.host_map import first_module
from xenvirtio.static.plan import Transport
from xenvirtio.static.span import Span, round_up, size_text
from xenvirtio.static.system import System, SystemDevice

MIB = 1 << 20


class Kind(Enum):
    """What a block is, and so how it is coloured."""

    XEN = "xen"
    """Xen's, or the host's: not to be touched."""
    RAM = "ram"
    REGION = "region"
    REGISTERS = "registers"
    FREE = "free"


@dataclass(frozen=True, slots=True)
class Block:
    """One range. Without `address` its place is Xen's to choose at boot. `region` is the id of shared memory."""

    kind: Kind
    label: str
    size_bytes: int
    address: int | None = None
    region: str | None = None

    @property
    def place(self) -> str:
        return "anywhere" if self.address is None else str(Span(self.address, self.size_bytes))


@dataclass(frozen=True, slots=True)
class Column:
    """Blocks from the lowest address up, those without one last."""

    title: str
    facts: str
    blocks: tuple[Block, ...]
    name: str | None = None
    """The domain; None for the host."""


def columns(system: System) -> list[Column]:
    return [_host(system), *(_domain(system, domain) for domain in system.domains)]


def title(system: System) -> str:
    description = system.description
    where = description.host.where.removeprefix("platform ")
    on = "" if where == "host" else f" on {where}"
    return f"{description.name}: Xen {description.xen}{on}, generation {system.generation}"


def _host(system: System) -> Column:
    description = system.description
    host = description.host
    blocks = [Block(Kind.XEN, device.name, device.span.size_bytes, device.span.address) for device in host.early]
    blocks += [Block(Kind.XEN, "Xen's heap", span.size_bytes, span.address) for span in description.static_heap]
    blocks.append(Block(Kind.FREE, "modules from here on", 0, first_module(description)))
    for domain in system.domains:
        blocks += [
            Block(Kind.RAM, f"RAM of {domain.name}", span.size_bytes, span.address) for span in domain.static_memory
        ]
    placed: list[Block] = []
    chosen: list[Block] = []
    for region in system.regions:
        block = Block(Kind.REGION, region.id, region.size_bytes, region.host, region.id)
        (chosen if region.host is None else placed).append(block)
    for domain in system.domains:
        if not domain.static_memory:
            chosen.append(Block(Kind.RAM, f"RAM of {domain.name}", domain.memory_bytes))
    xen = round_up(xen_bytes(system), MIB)
    chosen.append(Block(Kind.XEN, "Xen, about", xen))
    total = sum(bank.size_bytes for bank in host.memory)
    domains = sum(domain.memory_bytes for domain in system.domains)
    free = total - xen - domains - sum(region.size_bytes for region in system.regions)
    if free > 0:
        chosen.append(Block(Kind.FREE, "free", free // MIB * MIB))
    return Column("host", f"{size_text(total)}, GICv{host.gic_version}", (*_sorted([*blocks, *placed]), *chosen))


def _domain(system: System, domain: Domain) -> Column:
    host = system.description.host
    blocks = [Block(Kind.XEN, w.name, w.span.size_bytes, w.span.address) for w in xen_windows(domain, host)]
    blocks += [Block(Kind.RAM, "RAM", span.size_bytes, span.address) for span in ram(domain)]
    blocks += [
        Block(Kind.REGION, region.id, region.size_bytes, region.guests[domain.name], region.id)
        for region in system.regions_of(domain.name)
    ]
    registers = [d for d in system.devices if d.transport is Transport.MMIO and d.frontend == domain.name]
    blocks += _registers(sorted(registers, key=lambda device: device.base))
    chosen = [Block(Kind.RAM, "RAM", domain.memory_bytes)] if domain.is_dom0 else []
    cpus = f"{domain.vcpus} vCPU{'s' * (domain.vcpus > 1)}"
    facts = [f"domid {system.domids[domain.name]}", domain.os.value, cpus, size_text(domain.memory_bytes)]
    if domain.direct_map and not domain.is_dom0:
        facts.append("direct-map")
    return Column(domain.name, ", ".join(facts), (*_sorted(blocks), *chosen), domain.name)


def _registers(devices: list[SystemDevice]) -> Iterator[Block]:
    """Devices whose registers follow each other are one block."""
    run: list[SystemDevice] = []
    for device in devices:
        if run and device.base != run[-1].base + VIRTIO_SLOT_BYTES:
            yield _run(run)
            run = []
        run.append(device)
    if run:
        yield _run(run)


def _run(devices: list[SystemDevice]) -> Block:
    names = ", ".join(device.name for device in devices)
    return Block(Kind.REGISTERS, f"virtio: {names}", VIRTIO_SLOT_BYTES * len(devices), devices[0].base)


def _sorted(blocks: list[Block]) -> list[Block]:
    return sorted(blocks, key=lambda block: (block.address or 0, block.size_bytes))


def device_text(device: SystemDevice) -> str:
    """How a device is reached, in a few words."""
    match device.transport:
        case Transport.MMIO:
            how = "grants" if device.grants else "foreign mapping"
            return f"mmio {device.base:#010x}, irq {device.irq}, {how}"
        case Transport.MSG_STATIC:
            return f"messages in {device.region}, channel {device.channel}"
        case Transport.MSG_ARGO:
            return f"messages over Argo, port {device.argo_port:#x}"
