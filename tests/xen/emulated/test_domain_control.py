"""The control domain's side of the emulated host."""

from __future__ import annotations

import ctypes

import pytest

from xenvirtio.errors import HypervisorError
from xenvirtio.ids import PAGE_SIZE, DomId, Gfn, GrantRef
from xenvirtio.xen.capabilities import NO_PFN, DomainControl, HvmParam, XenVersion
from xenvirtio.xen.emulated import EmulatedHost
from xenvirtio.xen.emulated.domain import CONNECTION_OFFSET, STORE_GFN


def control_of(host: EmulatedHost) -> DomainControl:
    return host.open_hypervisor().open_domain_control()


def test_domains_as_xen_lists_them() -> None:
    with EmulatedHost() as host:
        control = control_of(host)
        guest = host.create_dom0less_domain(vcpus=2)
        crashed = host.create_domain()
        crashed.crash("told to")
        control.set_handle(guest.domid, bytes(range(16)))
        zero, one, two = control.domains()
        assert [zero.domid, one.domid, two.domid] == [0, guest.domid, crashed.domid]
        assert (one.max_vcpus, one.handle, one.is_shutdown, one.is_dying) == (2, bytes(range(16)), False, False)
        assert (two.is_shutdown, two.shutdown_reason, two.is_dying) == (True, 3, False)
        with (
            host.open_hypervisor()
            .open_foreign_memory(crashed.domid)
            .map_frames(crashed.domid, [Gfn(0x40000)], writable=False)[0]
        ):
            control.destroy(crashed.domid)
            assert control.domains()[2].is_dying
        assert [info.domid for info in control.domains()] == [0, guest.domid]


def test_a_domain_of_4_20_has_no_store_page_until_it_is_made() -> None:
    with EmulatedHost() as host:
        control, guest = control_of(host), host.create_dom0less_domain()
        domid = guest.domid
        assert control.hvm_param(domid, HvmParam.STORE_PFN) == NO_PFN
        assert control.hvm_param(domid, HvmParam.STORE_EVTCHN) == 1
        memory = host.open_hypervisor().open_foreign_memory(domid)
        _, errors = memory.map_frames(domid, [STORE_GFN], writable=True)
        assert errors[0] < 0
        with pytest.raises(HypervisorError, match="ENOMEM"):
            control.populate_page(domid, STORE_GFN)
        control.raise_max_memory(domid, 1)
        control.populate_page(domid, STORE_GFN)
        control.seed_grant(domid, GrantRef(1), STORE_GFN)
        with host.open_hypervisor().open_grants().map(domid, [GrantRef(1)], writable=True) as page:
            guest.memory.write(STORE_GFN * PAGE_SIZE, b"hello")
            assert ctypes.string_at(page.address, 5) == b"hello"


def test_a_domain_of_4_21_has_its_page_already() -> None:
    with EmulatedHost(version=XenVersion(4, 21)) as host:
        control, guest = control_of(host), host.create_dom0less_domain()
        assert control.hvm_param(guest.domid, HvmParam.STORE_PFN) == STORE_GFN
        assert guest.memory.read(STORE_GFN * PAGE_SIZE + CONNECTION_OFFSET, 4) == b"\x01\0\0\0"
        with host.open_hypervisor().open_grants().map(guest.domid, [GrantRef(1)], writable=True):
            pass


def test_a_domain_without_xenstore_has_neither() -> None:
    with EmulatedHost() as host:
        control, guest = control_of(host), host.create_domain()
        assert control.hvm_param(guest.domid, HvmParam.STORE_EVTCHN) == 0
        assert control.hvm_param(guest.domid, HvmParam.STORE_PFN) == 0


def test_refusals() -> None:
    with EmulatedHost() as host:
        control = control_of(host)
        with pytest.raises(HypervisorError, match="ESRCH"):
            control.hvm_param(DomId(77), HvmParam.STORE_PFN)
        guest = host.create_domain()
        with pytest.raises(HypervisorError, match=r"EPERM.*only the control domain"):
            host.open_hypervisor(guest.domid).open_domain_control()


def test_an_unknown_release_is_refused() -> None:
    with EmulatedHost(version=XenVersion(4, 99)) as host, pytest.raises(HypervisorError, match=r"this is Xen 4\.99"):
        control_of(host)
