"""What a Zephyr domain is built with, since Zephyr reads no device tree when it runs.

    xenvirtio.h        constants: who it is, its regions, channels and devices
    xenvirtio.overlay  for its board's tree (xenvm, xenvm_gicv3): virtio,mmio and mmio-sram nodes
    xenvirtio.conf     what its configuration needs for them

Source: Zephyr dts/bindings/virtio/virtio,mmio.yaml, dts/bindings/sram/mmio-sram.yaml,
include/zephyr/dt-bindings/interrupt-controller/arm-gic.h; drivers/xen/Kconfig, drivers/virtio/Kconfig.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from xenvirtio.static.emit.passthrough import mmio_devices
from xenvirtio.static.guest_map import VIRTIO_SLOT_BYTES
from xenvirtio.static.plan import SPI_FIRST, Plan, Role, Transport
from xenvirtio.static.system import System
from xenvirtio.static.tree import Node, Reference, Value, cells, overlay_of, quoted, texts, wide

FORMAT = 1
_GIC_SPI, _EDGE, _PRIORITY = 0, 1 << 2, 0xA0
"""GIC_SPI, IRQ_TYPE_EDGE and IRQ_DEFAULT_PRIORITY of Zephyr's arm-gic.h, which differ from Linux's."""

_DECLARATIONS = """\
enum xenvirtio_role { XENVIRTIO_FRONTEND = 0, XENVIRTIO_BACKEND = 1 };

enum xenvirtio_transport { XENVIRTIO_MMIO = 0, XENVIRTIO_MSG_STATIC = 1, XENVIRTIO_MSG_ARGO = 2 };

/* Static shared memory, where it lies in this domain. */
struct xenvirtio_region {
\tconst char *id;
\tuint64_t address;
\tuint64_t size;
};

/* A static event channel: bind `port`; notifying it reaches `peer_port` of `peer_domid`. */
struct xenvirtio_channel {
\tconst char *name;
\tuint32_t port;
\tuint32_t peer_domid;
\tuint32_t peer_port;
};

/* A virtio device that this domain has or serves. `irq` counts as the GIC does, from 32; `region` and `channel` are
 * indices into the arrays here, -1 where the transport has none. */
struct xenvirtio_device {
\tconst char *name;
\tuint32_t devid;
\tuint32_t virtio_type;
\tenum xenvirtio_role role;
\tuint32_t peer_domid;
\tenum xenvirtio_transport transport;
\tuint64_t base;
\tuint32_t size;
\tuint32_t irq;
\tint grants;
\tint region;
\tint channel;
\tuint32_t argo_port;
};
"""
_ROLES = {Role.FRONTEND: "XENVIRTIO_FRONTEND", Role.BACKEND: "XENVIRTIO_BACKEND"}
_TRANSPORTS = {
    Transport.MMIO: "XENVIRTIO_MMIO",
    Transport.MSG_STATIC: "XENVIRTIO_MSG_STATIC",
    Transport.MSG_ARGO: "XENVIRTIO_MSG_ARGO",
}


def header(plan: Plan) -> str:
    """`xenvirtio.h`: the domain's plan as constants, C11 and C++."""
    regions = [region.id for region in plan.regions]
    channels = [channel.name for channel in plan.channels]
    lines = [
        "/* What this domain knows of the system it is part of. Made by xenvirtio static build: do not edit. */",
        "#ifndef XENVIRTIO_H",
        "#define XENVIRTIO_H",
        "",
        "#include <stdint.h>",
        "",
        f"#define XENVIRTIO_FORMAT {FORMAT}",
        "/* Of the whole description: two domains with different ones were built apart. */",
        f"#define XENVIRTIO_GENERATION {_text(plan.generation)}",
        f"#define XENVIRTIO_NAME {_text(plan.name)}",
        f"#define XENVIRTIO_DOMID {plan.domid}",
        f"#define XENVIRTIO_REGIONS {len(plan.regions)}",
        f"#define XENVIRTIO_CHANNELS {len(plan.channels)}",
        f"#define XENVIRTIO_DEVICES {len(plan.devices)}",
        "",
        *_macros("DOMID", plan.domains, (str(domid) for domid in plan.domains.values())),
        *_macros("REGION", regions, map(str, range(len(regions)))),
        *_macros("CHANNEL", channels, map(str, range(len(channels)))),
        *_macros("DEVICE", [device.name for device in plan.devices], map(str, range(len(plan.devices)))),
        "",
        _DECLARATIONS,
    ]
    lines += _array("region", "regions", [[_text(r.id), f"{r.address:#x}", f"{r.size_bytes:#x}"] for r in plan.regions])
    lines += _array(
        "channel",
        "channels",
        [[_text(c.name), str(c.port), str(plan.domains[c.peer]), str(c.peer_port)] for c in plan.channels],
    )
    rows = []
    for device in plan.devices:
        is_mmio, is_static = device.transport is Transport.MMIO, device.transport is Transport.MSG_STATIC
        rows.append(
            [
                _text(device.name),
                str(device.devid),
                str(int(device.type)),
                _ROLES[device.role],
                str(plan.domains[device.peer]),
                _TRANSPORTS[device.transport],
                f"{device.base:#x}",
                f"{VIRTIO_SLOT_BYTES if is_mmio else 0:#x}",
                str(device.irq),
                str(int(device.grants)),
                str(regions.index(device.region) if is_static else -1),
                str(channels.index(device.channel) if is_static else -1),
                f"{device.argo_port:#x}",
            ]
        )
    lines += _array("device", "devices", rows)
    return "\n".join([*lines, "#endif", ""])


def overlay(system: System, domain: str) -> str:
    """`xenvirtio.overlay`."""
    nodes = [
        Node(
            f"virtio@{device.base:x}",
            {
                "compatible": texts("virtio,mmio"),
                "reg": wide(device.base, VIRTIO_SLOT_BYTES),
                "interrupts": cells(_GIC_SPI, device.irq - SPI_FIRST, _EDGE, _PRIORITY),
                "interrupt-parent": cells(Reference("gic")),
            },
            label=label,
        )
        for label, device in zip(
            _names("virtio", [device.name for device in mmio_devices(system, domain)]),
            mmio_devices(system, domain),
            strict=True,
        )
    ]
    regions = system.regions_of(domain)
    for label, region in zip(_names("shm", [region.id for region in regions]), regions, strict=True):
        address = region.guests[domain]
        properties: dict[str, Value] = {"compatible": texts("mmio-sram"), "reg": wide(address, region.size_bytes)}
        nodes.append(Node(f"memory@{address:x}", properties, label=label))
    return overlay_of(Node("/", {}, nodes)) if nodes else "/* Nothing: this domain has no device and no region. */\n"


def configuration(system: System, domain: str) -> str:
    """`xenvirtio.conf`, to be added with EXTRA_CONF_FILE."""
    lines = ["CONFIG_XEN=y"]
    if any(found.name == domain and not found.enhanced.has_xenstore for found in system.domains):
        lines.append("CONFIG_XEN_DOM0LESS=y")
    if mmio_devices(system, domain):
        lines.append("CONFIG_VIRTIO=y")
    return "\n".join(lines) + "\n"


def _array(kind: str, name: str, rows: Sequence[Sequence[str]]) -> list[str]:
    """No array at all for no rows: ISO C has none of length 0."""
    if not rows:
        return []
    inner = [f"\t{{ {', '.join(row)} }}," for row in rows]
    return [f"static const struct xenvirtio_{kind} xenvirtio_{name}[{len(rows)}] = {{", *inner, "};", ""]


def _macros(kind: str, names: Iterable[str], values: Iterable[str]) -> list[str]:
    found = _names(f"XENVIRTIO_{kind}", names)
    return [f"#define {name.upper()} {value}" for name, value in zip(found, values, strict=True)]


def _names(prefix: str, names: Iterable[str]) -> list[str]:
    """An identifier for each name, told apart by a number where they would be the same but for case or punctuation."""
    found: list[str] = []
    for name in names:
        wanted = identifier = prefix + "_" + re.sub(r"[^A-Za-z0-9]", "_", name).lower()
        number = 2
        while identifier in found:
            identifier, number = f"{wanted}_{number}", number + 1
        found.append(identifier)
    return found


def _text(value: str) -> str:
    """A C string literal. `?` is escaped as well: two of them begin a trigraph."""
    return quoted(value).replace("?", "\\077")
