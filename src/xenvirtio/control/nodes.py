"""The XenStore nodes that a toolstack writes: dom0's own, a domain's, and those of its virtio devices.

The layout and the permissions are libxl's: what identifies a guest (`name`, `vm`, `domid`) it may read and not write,
or it could take another guest's name and with it that guest's disk. The tool that Xen has for dom0less domains gives
all of them to the guest.

Source: xen tools/libs/light/libxl_create.c (libxl__domain_make), libxl_dom.c (libxl__build_post), libxl_virtio.c,
libxl_device.c (libxl__device_generic_add); tools/helpers/xen-init-dom0.c, init-dom0less.c.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from uuid import NAMESPACE_OID, UUID, uuid5

from xenvirtio.ids import DomId, EventPort, Gfn
from xenvirtio.static.plan import Plan, PlannedDevice
from xenvirtio.xenstore.client import Operations

KIND = "virtio"
"""Planned devices are in the layout of virtio=[...], which has no parameters: the backend's configuration has them."""

INITIALISING = "1"


@dataclass(frozen=True, slots=True)
class Node:
    """A node to be written. Without `permissions` it gets those of its directory."""

    path: str
    value: str = ""
    permissions: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class StorePage:
    """Where a domain's XenStore ring is, and the domain's own port of its event channel."""

    gfn: Gfn
    port: EventPort


def planned_uuid(plan: Plan, domid: DomId, name: str) -> UUID:
    """The UUID of a planned domain: the same after each boot of the same build, whoever asks for it."""
    return uuid5(NAMESPACE_OID, f"{plan.generation}/{domid}/{name}")


def home(domid: DomId) -> str:
    return f"/local/domain/{domid}"


def backend_kind(backend: DomId) -> str:
    return f"{home(backend)}/backend/{KIND}"


def backend_directory(backend: DomId, frontend: DomId, devid: int) -> str:
    return f"{backend_kind(backend)}/{frontend}/{devid}"


def dom0_nodes() -> list[Node]:
    """What dom0 finds of itself."""
    return [
        Node("/local/domain/0/domid", "0"),
        Node("/local/domain/0/name", "Domain-0"),
        Node("/local/pool/0/name", "Pool-0"),
    ]


def domain_nodes(
    domid: DomId,
    name: str,
    uuid: UUID,
    *,
    vcpus: int,
    limit_kib: int,
    target_kib: int,
    start_time_s: float,
    store: StorePage | None,
) -> list[Node]:
    """What a domain and its backends find of it; `store` is None for a domain that has no XenStore itself."""
    ours = ("n0", f"r{domid}")
    at = home(domid)
    vm = f"/vm/{uuid}"
    return [
        Node(vm, "", ours),
        Node(f"{vm}/name", name),
        Node(f"{vm}/uuid", str(uuid)),
        Node(f"{vm}/start_time", f"{start_time_s:.2f}"),
        Node(at, "", ours),
        Node(f"{at}/vm", vm),
        Node(f"{at}/name", name),
        Node(f"{at}/domid", str(domid)),
        *(Node(f"{at}/cpu/{index}/availability", "online") for index in range(vcpus)),
        Node(f"{at}/memory/static-max", str(limit_kib)),
        Node(f"{at}/memory/target", str(target_kib)),
        Node(f"{at}/memory/videoram", "-1"),
        Node(f"{at}/device", ""),
        *(_guest_side_nodes(domid, store) if store is not None else ()),
    ]


def _guest_side_nodes(domid: DomId, store: StorePage) -> list[Node]:
    """What a guest that reads XenStore looks for, and where it may write."""
    its = (f"n{domid}", "r0")
    at = home(domid)
    answers = ("shutdown", "feature-poweroff", "feature-reboot", "feature-suspend", "sysrq")
    return [
        Node(f"{at}/device/suspend/event-channel", "", its),
        *(Node(f"{at}/control/{key}", "", its) for key in answers),
        Node(f"{at}/control/platform-feature-multiprocessor-suspend", "1"),
        Node(f"{at}/control/platform-feature-xs_reset_watches", "1"),
        *(Node(f"{at}/{key}", "", its) for key in ("data", "drivers", "feature", "attr", "error")),
        Node(f"{at}/store/port", str(store.port)),
        Node(f"{at}/store/ring-ref", str(store.gfn)),
    ]


def device_nodes(device: PlannedDevice, backend: DomId, frontend: DomId) -> list[Node]:
    """Both directories of a planned virtio-mmio device, `state` last."""
    behind = backend_directory(backend, frontend, device.devid)
    before = f"{home(frontend)}/device/{KIND}/{device.devid}"
    return [
        Node(behind, "", (f"n{backend}", f"r{frontend}")),
        Node(f"{behind}/frontend", before),
        Node(f"{behind}/frontend-id", str(frontend)),
        Node(f"{behind}/online", "1"),
        Node(f"{behind}/irq", str(device.irq)),
        Node(f"{behind}/base", f"{device.base:#x}"),
        Node(f"{behind}/type", f"virtio,device{int(device.type):x}"),
        Node(f"{behind}/transport", "mmio"),
        Node(f"{behind}/grant_usage", str(int(device.grants))),
        Node(before, "", (f"n{frontend}", f"r{backend}")),
        Node(f"{before}/backend", behind),
        Node(f"{before}/backend-id", str(backend)),
        Node(f"{before}/state", INITIALISING),
        Node(f"{behind}/state", INITIALISING),
    ]


def write_nodes(store: Operations, nodes: Iterable[Node]) -> None:
    """Write nodes in their order; directories come into being with the permissions of theirs."""
    for node in nodes:
        store.write(node.path, node.value)
        if node.permissions:
            store.set_permissions(node.path, node.permissions)
