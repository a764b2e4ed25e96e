"""A frontend and a backend with a directory each, over every channel there is."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from xenvirtio.ids import DomId
from xenvirtio.metadata.argo import ArgoDirectory
from xenvirtio.metadata.argo_registry import ArgoRegistry
from xenvirtio.metadata.directory import Directory
from xenvirtio.metadata.plan import PlanDirectory
from xenvirtio.metadata.xenstore import XenStoreDirectory
from xenvirtio.static.plan import parse_plan
from xenvirtio.xen.emulated import EmulatedHost
from xenvirtio.xenstore.client import XenStoreClient
from xenvirtio.xenstore.serve import XenStoreService
from xenvirtio.xenstore.server import XenStoreServer

DOM0 = DomId(0)

FRONTEND_PLAN = """
format = 1
name = "frontend"
domid = 1
generation = "5d41402abc4b2a76"
[domains]
dom0 = 0
frontend = 1
[[region]]
id = "ring0"
address = 0x50000000
size = 0x100000
[[channel]]
name = "ring0"
port = 10
peer = "dom0"
peer_port = 11
[[device]]
name = "root"
type = "block"
role = "frontend"
peer = "dom0"
devid = 3
transport = "mmio"
base = 0x2000000
irq = 33
grants = true
[[device]]
name = "data"
type = "block"
role = "frontend"
peer = "dom0"
devid = 4
transport = "msg-static"
region = "ring0"
channel = "ring0"
[[device]]
name = "entropy0"
type = "entropy"
role = "frontend"
peer = "dom0"
devid = 5
transport = "msg-argo"
argo_port = 0x200
"""

BACKEND_PLAN = (
    FRONTEND_PLAN.replace('name = "frontend"', 'name = "dom0"', 1)
    .replace("domid = 1", "domid = 0")
    .replace('"frontend"\npeer = "dom0"', '"backend"\npeer = "frontend"')
    .replace("port = 10\npeer", "port = 11\npeer")
    .replace('peer = "dom0"\npeer_port = 11', 'peer = "frontend"\npeer_port = 10')
)

ROOT = {
    "transport": "mmio",
    "backend": "0",
    "devid": "3",
    "base": "0x2000000",
    "irq": "33",
    "grants": "1",
    "generation": "5d41402abc4b2a76",
}
"""What a frontend may say of the device `root`, over every channel."""


@dataclass(frozen=True, slots=True)
class World:
    """`frontend` is in domain `domid`, `backend` in domain 0."""

    frontend: Directory
    backend: Directory
    domid: DomId
    is_static: bool
    end_frontend: Callable[[], None]
    """End the frontend's domain as its toolstack does."""

    def register_root(self, fields: Mapping[str, str] = ROOT) -> None:
        self.frontend.register("root", "block", fields)


@contextmanager
def plan_world(tmp_path: Path) -> Iterator[World]:
    frontend, backend = PlanDirectory(parse_plan(FRONTEND_PLAN)), PlanDirectory(parse_plan(BACKEND_PLAN))
    yield World(frontend, backend, DomId(1), True, lambda: None)
    frontend.close()
    backend.close()


@contextmanager
def xenstore_world(tmp_path: Path, *, privileged_backend: bool = True) -> Iterator[World]:
    """A server with a socket for domain 0 and one for domain 1, whose home is as a toolstack makes it."""
    with ExitStack() as stack:
        service = stack.enter_context(XenStoreService(XenStoreServer(time.monotonic)))
        service.listen(tmp_path / "dom0")
        toolstack = stack.enter_context(XenStoreClient.at(tmp_path / "dom0"))
        make_home(toolstack, 1)
        make_home(toolstack, 2)
        service.listen(tmp_path / "dom1", DomId(1))
        service.listen(tmp_path / "dom2", DomId(2))
        backend_domid = DOM0 if privileged_backend else DomId(2)
        frontend = XenStoreDirectory(XenStoreClient.at(tmp_path / "dom1"), [backend_domid])
        stack.callback(frontend.close)
        backend = XenStoreDirectory(XenStoreClient.at(tmp_path / f"dom{backend_domid}"), [DomId(1)])
        stack.callback(backend.close)
        yield World(frontend, backend, DomId(1), False, lambda: toolstack.rm("/local/domain/1"))


def make_home(toolstack: XenStoreClient, domid: int) -> None:
    home = f"/local/domain/{domid}"
    toolstack.write(f"{home}/domid", domid)
    toolstack.mkdir(f"{home}/data")
    toolstack.set_permissions(home, ["n0", f"r{domid}"])
    toolstack.set_permissions(f"{home}/domid", ["n0", f"r{domid}"])
    toolstack.set_permissions(f"{home}/data", [f"n{domid}"])


@contextmanager
def argo_world(tmp_path: Path) -> Iterator[World]:
    with EmulatedHost() as host:
        domid = host.create_domain(memory_bytes=4096).domid
        with (
            ArgoRegistry(host.open_hypervisor(DOM0), DOM0, [domid], pulse_s=0.05) as backend,
            ArgoDirectory(host.open_hypervisor(domid), DOM0, hello_s=0.1) as frontend,
        ):
            yield World(frontend, backend, domid, False, lambda: host.destroy_domain(domid))


WORLDS = {"plan": plan_world, "xenstore": xenstore_world, "argo": argo_world}
