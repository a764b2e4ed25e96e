"""A domain's partial tree: its virtio-mmio devices, and its shared memory for UIO.

Xen copies what is under /passthrough into the tree that the domain's kernel gets, and takes from /gic the phandle that
its own interrupt controller is to have. Source: xen/arch/arm/dom0less-build.c; Linux
Documentation/devicetree/bindings/virtio/mmio.yaml, iommu/xen,grant-dma.yaml.
"""

from __future__ import annotations

from xenvirtio.static.description import Domain, Os, View
from xenvirtio.static.guest_map import VIRTIO_SLOT_BYTES
from xenvirtio.static.plan import SPI_FIRST, Transport
from xenvirtio.static.system import System, SystemDevice
from xenvirtio.static.tree import EMPTY, TWO_CELLS, Node, Reference, Value, cells, texts, wide
from xenvirtio.virtio.device import DeviceType

EDGE_RISING = 1
GIC_LABEL, GRANT_LABEL = "gic", "xen_grant_dma"
UIO_COMPATIBLE = "generic-uio"
"""What Linux is told by `uio_pdrv_genirq.of_id=`: the driver knows no name of its own."""
_TYPES_WITH_A_CHILD = {DeviceType.I2C: "i2c", DeviceType.GPIO: "gpio"}
"""Linux finds what is behind these through a child node (bindings i2c-virtio.yaml, gpio-virtio.yaml)."""


def mmio_devices(system: System, domain: str) -> list[SystemDevice]:
    """The virtio-mmio devices that the domain is the frontend of."""
    return [
        device for device in system.devices if device.transport is Transport.MMIO and device.frontend == domain
    ]


def has_uio_nodes(system: System, domain: Domain) -> bool:
    """Whether programs of the domain map its shared memory through UIO. dom0 has the host's tree, not one of these."""
    wants = domain.os is Os.LINUX and domain.view is View.UIO and not domain.is_dom0
    return wants and bool(system.regions_of(domain.name))


def passthrough_tree(system: System, domain: Domain) -> Node | None:
    """The root of the partial tree, or None for a domain that needs none."""
    nodes = [_virtio_node(system, device) for device in mmio_devices(system, domain.name)]
    if any(device.grants for device in mmio_devices(system, domain.name)):
        grant_dma: dict[str, Value] = {"compatible": texts("xen,grant-dma"), "#iommu-cells": cells(1)}
        nodes.insert(0, Node("xen-grant-dma", grant_dma, label=GRANT_LABEL))
    if has_uio_nodes(system, domain):
        nodes += [
            uio_node(region.guests[domain.name], region.size_bytes) for region in system.regions_of(domain.name)
        ]
    if not nodes:
        return None
    gic = Node("gic", {"#interrupt-cells": cells(3), "interrupt-controller": EMPTY}, label=GIC_LABEL)
    bus: dict[str, Value] = {"compatible": texts("simple-bus"), "ranges": EMPTY, **TWO_CELLS}
    return Node("/", TWO_CELLS, [gic, Node("passthrough", bus, nodes)])


def _virtio_node(system: System, device: SystemDevice) -> Node:
    properties: dict[str, Value] = {
        "compatible": texts("virtio,mmio"),
        "reg": wide(device.base, VIRTIO_SLOT_BYTES),
        "interrupts": cells(0, device.irq - SPI_FIRST, EDGE_RISING),
        "interrupt-parent": cells(Reference(GIC_LABEL)),
        "dma-coherent": EMPTY,
    }
    if device.grants:
        properties["iommus"] = cells(Reference(GRANT_LABEL), system.domids[device.backend])
    children = []
    if device.type in _TYPES_WITH_A_CHILD:
        inner: dict[str, Value] = {"compatible": texts(f"virtio,device{device.type:x}")}
        if device.type is DeviceType.GPIO:
            inner |= {"gpio-controller": EMPTY, "#gpio-cells": cells(2)}
            inner |= {"interrupt-controller": EMPTY, "#interrupt-cells": cells(2)}
        children.append(Node(_TYPES_WITH_A_CHILD[device.type], inner))
    return Node(f"virtio@{device.base:x}", properties, children)


def uio_node(address: int, size_bytes: int) -> Node:
    """A range that `uio_pdrv_genirq` offers as /dev/uioN."""
    return Node(
        f"shared-memory@{address:x}", {"compatible": texts(UIO_COMPATIBLE), "reg": wide(address, size_bytes)}
    )
