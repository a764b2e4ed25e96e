"""A domain's guest-physical addresses: Xen's own windows, and where its RAM lies.

An ordinary domain has Xen's layout for guests; a direct-mapped one has its RAM, GIC and UART where the host has them.
Source: xen/include/public/arch-arm.h (GUEST_*), xen/arch/arm/{dom0less-build,static-memory}.c.
"""

from __future__ import annotations

from dataclasses import dataclass

from xenvirtio.static.description import Domain
from xenvirtio.static.host import Host
from xenvirtio.static.span import Span

VIRTIO_WINDOW = Span(0x0200_0000, 0x10_0000)
"""Where virtio-mmio registers go, by libxl's convention. Nothing of Xen's is there."""
VIRTIO_SLOT_BYTES = 0x200
VIRTIO_SPI_FIRST = 33
"""libxl ends at 43; a domain without toolstack may go on as far as its `nr_spis` reaches."""
VPL011_SPI = 32

RAM_BANKS = (Span(0x4000_0000, 0xC000_0000), Span(0x2_0000_0000, 0xFE_0000_0000))
GUEST_GIC = {
    2: (("GIC distributor", Span(0x0300_1000, 0x1000)), ("GIC CPU interface", Span(0x0300_2000, 0x2000))),
    3: (("GIC distributor", Span(0x0300_1000, 0x1_0000)), ("GIC redistributors", Span(0x0302_0000, 0x100_0000))),
}
VPL011 = Span(0x2200_0000, 0x1000)
GRANT_TABLE = Span(0x3800_0000, 0x100_0000)
MAGIC_PAGES = Span(0x3900_0000, 0x100_0000)


@dataclass(frozen=True, slots=True)
class Window:
    """A range that Xen occupies in a domain's address map."""

    name: str
    span: Span


def xen_windows(domain: Domain, host: Host) -> list[Window]:
    """What Xen itself puts into the domain's map, lowest first. dom0 sees the host: its devices."""
    if domain.is_dom0:
        return sorted(_host_windows(host), key=lambda window: window.span)
    windows = [Window("grant table", GRANT_TABLE)]
    # of a direct-mapped domain only XenStore's page is there, and only where init-dom0less or its like makes it
    if not domain.direct_map or domain.enhanced.has_xenstore:
        windows.append(Window("magic pages", MAGIC_PAGES))
    if domain.direct_map:
        windows += _host_windows(host, uart=domain.vpl011)
    else:
        windows += [Window(name, span) for name, span in GUEST_GIC[host.gic_version]]
        windows += [Window("vpl011", VPL011)] if domain.vpl011 else []
    return sorted(windows, key=lambda window: window.span)


def _host_windows(host: Host, *, uart: bool = True) -> list[Window]:
    devices = [*host.gic, *([host.uart] if host.uart and uart else [])]
    return [Window(f"host {device.name}", device.span) for device in devices]


def vpl011_irq(domain: Domain, host: Host) -> int | None:
    """GIC INTID of the domain's emulated UART; a direct-mapped domain has the host's."""
    if domain.is_dom0 or not domain.vpl011:
        return None
    return host.uart_irq if domain.direct_map else VPL011_SPI


def ram(domain: Domain) -> list[Span]:
    """Where the domain's RAM lies; empty for dom0, whose RAM Xen places.

    More than fits the two banks is left out: `check` says so.
    """
    if domain.is_dom0:
        return []
    if domain.direct_map:
        return sorted(domain.static_memory)
    spans, left = [], domain.memory_bytes
    for bank in RAM_BANKS:
        if left > 0:
            spans.append(Span(bank.address, min(left, bank.size_bytes)))
            left -= bank.size_bytes
    return spans
