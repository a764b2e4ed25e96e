"""The machine under Xen: its memory and the devices that a guest's address map can run into."""

from __future__ import annotations

from dataclasses import dataclass

from xenvirtio.static.span import Span


@dataclass(frozen=True, slots=True)
class HostDevice:
    """A range of device registers. A direct-mapped domain finds its own GIC and UART at the host's places."""

    name: str
    span: Span


@dataclass(frozen=True, slots=True)
class Host:
    """`where` is its place in the description; `early` what the boot loader has put into RAM before the modules."""

    where: str
    memory: tuple[Span, ...]
    gic_version: int
    gic: tuple[HostDevice, ...]
    uart: HostDevice | None = None
    uart_irq: int | None = None
    """GIC INTID of the UART: a direct-mapped domain with vpl011 has it at this number."""
    early: tuple[HostDevice, ...] = ()
    first_module: int | None = None
    """Where boot modules are loaded from, unless the description says."""
    console: str = ""
    """stdout-path of the host tree; empty leaves what the tree has."""


MIB = 1 << 20

_QEMU_EARLY = (HostDevice("what QEMU loads", Span(0x4000_0000, 0x900_0000)),)
_QEMU_UART = HostDevice("UART", Span(0x900_0000, 0x1000))


def _qemu_virt(where: str, memory_bytes: int, gic_version: int) -> Host:
    gic = {
        2: (
            HostDevice("GIC distributor", Span(0x800_0000, 0x1_0000)),
            HostDevice("GIC CPU interface", Span(0x801_0000, 0x1_0000)),
        ),
        3: (
            HostDevice("GIC distributor", Span(0x800_0000, 0x1_0000)),
            HostDevice("GIC redistributors", Span(0x80A_0000, 0xF6_0000)),
        ),
    }[gic_version]
    return Host(
        where=where,
        memory=(Span(0x4000_0000, memory_bytes),),
        gic_version=gic_version,
        gic=gic,
        uart=_QEMU_UART,
        uart_irq=33,
        early=_QEMU_EARLY,
        first_module=0x4900_0000,
        console="/pl011@9000000",
    )


PLATFORMS = {"qemu-virt-gicv3": 3, "qemu-virt-gicv2": 2}
"""Known machines and their GIC. Source: QEMU hw/arm/virt.c (base_memmap); where Xen and the tree lie was seen."""
PLATFORM_MEMORY_BYTES = 3072 * MIB
"""What the lab's machine has; host_memory says otherwise."""


def known_host(platform: str, memory_bytes: int) -> Host:
    """Raises KeyError for a platform that is not in `PLATFORMS`."""
    return _qemu_virt(f"platform {platform}", memory_bytes, PLATFORMS[platform])
