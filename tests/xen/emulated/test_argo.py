"""Argo of the emulated host: the answers that were seen on real Xen."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import replace

import pytest

from xenvirtio.errors import HypervisorError
from xenvirtio.ids import ArgoPort, DomId
from xenvirtio.xen.argo_abi import NotifyFlag
from xenvirtio.xen.capabilities import ArgoAddress, ArgoRingState
from xenvirtio.xen.emulated import Domain, EmulatedHost, EmulatedHypervisor
from xenvirtio.xen.emulated.argo import ANY, ArgoSwitch

DOM0 = DomId(0)
PORT = ArgoPort(1)
SIXTEEN_PAGES = 16 * 4096 - 64

Open = Callable[[int], EmulatedHypervisor]


def refused(error: int, call: Callable[..., object], *arguments: object) -> None:
    with pytest.raises(HypervisorError) as caught:
        call(*arguments)
    assert errno.errorcode[caught.value.errno] == errno.errorcode[error]


def test_registering(transport: str, open_hypervisor: Open, domain: Domain) -> None:
    argo = open_hypervisor(0).open_argo()
    for length in (32, 50, (1 << 24) + 16):
        refused(errno.EINVAL, argo.register_ring, PORT, domain.domid, length)
    refused(errno.EPERM, argo.register_ring, PORT, ANY, 4032)
    refused(errno.ESRCH, argo.register_ring, PORT, DomId(99), 4032)
    ring = argo.register_ring(PORT, domain.domid, 4032)
    refused(errno.EEXIST, argo.register_ring, PORT, domain.domid, 4032)
    refused(errno.EEXIST, open_hypervisor(0).open_argo().register_ring, PORT, domain.domid, 4032)
    own = argo.register_ring(PORT, DOM0, 48)
    own.close()
    ring.close()
    refused(errno.ENOENT, argo.unregister_ring, PORT, domain.domid)
    for port in range(128):
        argo.register_ring(ArgoPort(port), domain.domid, 48)
    refused(errno.ENOSPC, argo.register_ring, ArgoPort(128), domain.domid, 48)


def test_sending(transport: str, open_hypervisor: Open, domain: Domain) -> None:
    argo, guest = open_hypervisor(0).open_argo(), open_hypervisor(domain.domid).open_argo()
    to = ArgoAddress(DOM0, PORT)
    refused(errno.ECONNREFUSED, guest.send, ArgoPort(9), to, 0, b"")
    refused(errno.ESRCH, guest.send, ArgoPort(9), ArgoAddress(DomId(99), PORT), 0, b"")
    argo.register_ring(PORT, domain.domid, SIXTEEN_PAGES)
    guest.send(ArgoPort(9), to, 0, b"")  # from a port that is not registered
    refused(errno.EMSGSIZE, guest.send, ArgoPort(9), to, 0, bytes(65441))


def test_what_notify_tells(transport: str, open_hypervisor: Open, domain: Domain) -> None:
    argo, guest = open_hypervisor(0).open_argo(), open_hypervisor(domain.domid).open_argo()
    ring = ArgoAddress(DOM0, PORT)
    assert guest.notify([(ring, 0), (ArgoAddress(DomId(99), PORT), 0)]) == [ArgoRingState(), ArgoRingState()]
    argo.register_ring(PORT, domain.domid, SIXTEEN_PAGES)
    fine = ArgoRingState(exists=True, is_empty=True, has_room=True, message_max_bytes=65440)
    assert guest.notify([(ring, 100), (ring, 65441)]) == [fine, replace(fine, has_room=False)]
    for _ in range(16):
        guest.send(ArgoPort(9), ring, 0, bytes(4000))
    refused(errno.EAGAIN, guest.send, ArgoPort(9), ring, 0, bytes(4000))
    assert guest.notify([(ring, 4000)]) == [replace(fine, is_empty=False, has_room=False)]


def test_rings_go_with_either_domain(transport: str, open_hypervisor: Open, host: EmulatedHost, domain: Domain) -> None:
    argo = open_hypervisor(0).open_argo()
    ring = argo.register_ring(PORT, domain.domid, 4032)
    guests = open_hypervisor(domain.domid).open_argo().register_ring(PORT, DOM0, 4032)
    host.destroy_domain(domain.domid)
    refused(errno.ENOENT, argo.unregister_ring, PORT, domain.domid)
    refused(errno.ESRCH, argo.send, PORT, ArgoAddress(domain.domid, PORT), 0, b"")
    ring.close()
    guests.close()


def test_one_domain_may_not_wait_without_bound() -> None:
    """32 domains may wait for one ring; the next is told EBUSY."""
    raised: list[tuple[DomId, int]] = []
    switch = ArgoSwitch(lambda _: True, lambda *_: True, lambda *virq: raised.append(virq), is_permissive=True)
    file = os.memfd_create("ring")
    os.ftruncate(file, 4096)
    switch.register(DOM0, PORT, ANY, 4032, file, 1)
    switch.send(DomId(1), PORT, DOM0, PORT, 0, bytes(4000))
    for domid in range(1, 33):
        with pytest.raises(Exception, match=os.strerror(errno.EAGAIN)):
            switch.send(DomId(domid), PORT, DOM0, PORT, 0, bytes(100))
    with pytest.raises(Exception, match=os.strerror(errno.EBUSY)):
        switch.send(DomId(33), PORT, DOM0, PORT, 0, bytes(100))
    ((flags, longest),) = switch.notify(DomId(33), [(DOM0, PORT, 100)])
    assert flags == NotifyFlag.EXISTS | NotifyFlag.SHARED | NotifyFlag.EBUSY
    assert longest == 4000
    raised.clear()
    os.pwrite(file, (4016).to_bytes(4, "little"), 0)  # rx_ptr: the owner has taken it out
    switch.notify(DOM0, [])
    assert sorted(raised) == [(DomId(domid), 11) for domid in range(1, 33)]
    os.close(file)
