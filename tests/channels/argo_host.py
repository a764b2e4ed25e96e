"""Two domains of an emulated host, each with one program that uses Argo."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from xenvirtio.ids import ArgoPort, DomId
from xenvirtio.xen.capabilities import ArgoAddress
from xenvirtio.xen.emulated import EmulatedHost, EmulatedHypervisor

DOM0 = DomId(0)
PORT = ArgoPort(0x100)


@dataclass(frozen=True, slots=True)
class Two:
    host: EmulatedHost
    dom0: EmulatedHypervisor
    guest: EmulatedHypervisor
    domid: DomId

    @property
    def to_dom0(self) -> ArgoAddress:
        return ArgoAddress(DOM0, PORT)

    @property
    def to_guest(self) -> ArgoAddress:
        return ArgoAddress(self.domid, PORT)


@contextmanager
def two_domains(*, argo: bool = True, silo: bool = False) -> Iterator[Two]:
    with EmulatedHost(argo=argo, silo=silo) as host:
        domid = host.create_domain(memory_bytes=4096).domid
        dom0, guest = host.open_hypervisor(DOM0), host.open_hypervisor(domid)
        yield Two(host, dom0, guest, domid)
        guest.close()
        dom0.close()
