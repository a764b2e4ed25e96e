"""Refusals of the device-model operations, as Xen 4.20 on Arm was seen to give them."""

from __future__ import annotations

import ctypes
import errno
from collections.abc import Callable

import pytest

from xenvirtio.errors import HypervisorError
from xenvirtio.ids import DomId, ServerId
from xenvirtio.xen.capabilities import DeviceModel, Hypervisor
from xenvirtio.xen.emulated import DataAbort, Domain, EmulatedHost, EmulatedHypervisor


@pytest.fixture
def model(hypervisor: Hypervisor, domain: Domain) -> DeviceModel:
    return hypervisor.open_device_model(domain.domid)


def refused(error: int, call: Callable[..., object], *arguments: object, **named: object) -> None:
    with pytest.raises(HypervisorError) as caught:
        call(*arguments, **named)
    assert errno.errorcode[caught.value.errno] == errno.errorcode[error]


def port_of(page_address: int) -> int:
    return ctypes.c_uint32.from_address(page_address + 24).value


def test_domains_one_cannot_model(hypervisor: Hypervisor) -> None:
    refused(errno.EPERM, hypervisor.open_device_model(DomId(0)).nr_vcpus)
    refused(errno.ESRCH, hypervisor.open_device_model(DomId(77)).nr_vcpus)


def test_nr_vcpus(model: DeviceModel) -> None:
    assert model.nr_vcpus() == 2


def test_eight_servers_and_the_lowest_number_first(model: DeviceModel) -> None:
    assert [model.create_ioreq_server() for _ in range(8)] == list(range(8))
    refused(errno.ENOSPC, model.create_ioreq_server)
    model.destroy_ioreq_server(ServerId(3))
    refused(errno.ENOENT, model.destroy_ioreq_server, ServerId(3))
    assert model.create_ioreq_server() == 3


def test_ranges(model: DeviceModel) -> None:
    server = model.create_ioreq_server()
    refused(errno.EINVAL, model.map_io_range, server, 0x2000, 0x1FFF)
    refused(errno.ENOENT, model.map_io_range, ServerId(5), 0x1000, 0x1FFF)
    model.map_io_range(server, 0x1000, 0x1FFF)
    refused(errno.EEXIST, model.map_io_range, server, 0x1000, 0x1FFF)
    refused(errno.EEXIST, model.map_io_range, server, 0x1800, 0x2800)
    model.unmap_io_range(server, 0x1400, 0x17FF)  # a part: the range splits
    refused(errno.ENOENT, model.unmap_io_range, server, 0x1400, 0x17FF)
    refused(errno.ENOENT, model.unmap_io_range, server, 0x1000, 0x1FFF)
    model.unmap_io_range(server, 0x1000, 0x13FF)
    other = model.create_ioreq_server()
    model.map_io_range(other, 0x1000, 0x1FFF)  # another server may overlap


def test_the_257th_range_is_enomem(model: DeviceModel) -> None:
    server = model.create_ioreq_server()
    for number in range(256):
        model.map_io_range(server, number * 0x1000, number * 0x1000 + 0xFF)
    refused(errno.ENOMEM, model.map_io_range, server, 0x1000000, 0x10000FF)


def test_ports_are_filled_when_the_page_is_there_before_enabling(model: DeviceModel) -> None:
    server = model.create_ioreq_server()
    with model.map_ioreq_page(server) as page:
        assert port_of(page.address) == 0
        model.set_server_state(server, enabled=True)
        assert port_of(page.address) != 0
        assert port_of(page.address + 32) not in (0, port_of(page.address))


def test_a_page_mapped_after_enabling_has_no_ports_until_enabled_again(model: DeviceModel, domain: Domain) -> None:
    server = model.create_ioreq_server()
    model.set_server_state(server, enabled=True)
    with model.map_ioreq_page(server) as page:
        model.set_server_state(server, enabled=True)
        assert port_of(page.address) == 0
        model.set_server_state(server, enabled=False)
        model.set_server_state(server, enabled=True)
        assert port_of(page.address) != 0


def test_an_access_through_a_page_without_ports_is_a_data_abort(model: DeviceModel, domain: Domain) -> None:
    server = model.create_ioreq_server()
    model.map_io_range(server, 0x1000, 0x1FFF)
    model.set_server_state(server, enabled=True)
    with model.map_ioreq_page(server), pytest.raises(DataAbort):
        domain.vcpu(1).mmio_read(0x1000, 4)


def test_the_page_may_be_mapped_twice_and_stays_readable_after_destroy(model: DeviceModel) -> None:
    server = model.create_ioreq_server()
    with model.map_ioreq_page(server) as one, model.map_ioreq_page(server) as other:
        ctypes.c_uint64.from_address(one.address + 8).value = 5
        model.destroy_ioreq_server(server)
        assert ctypes.c_uint64.from_address(other.address + 8).value == 5
        refused(errno.ENOENT, model.map_ioreq_page, server)


def test_a_server_belongs_to_the_domain_that_made_it(
    transport: str, open_hypervisor: Callable[[int], EmulatedHypervisor], host: EmulatedHost, domain: Domain
) -> None:
    backend = host.create_domain(memory_bytes=4096).domid
    there = open_hypervisor(backend).open_device_model(domain.domid)
    refused(errno.EPERM, there.nr_vcpus)
    host.set_target(backend, domain.domid)
    server = there.create_ioreq_server()
    here = open_hypervisor(0).open_device_model(domain.domid)
    refused(errno.EPERM, here.destroy_ioreq_server, server)
    refused(errno.EPERM, here.map_ioreq_page, server)
    there.destroy_ioreq_server(server)


def test_silo_refuses_a_driver_domain_at_create() -> None:
    with EmulatedHost(silo=True) as host:
        guest, backend = host.create_domain(), host.create_domain()
        host.set_target(backend.domid, guest.domid)
        model = host.open_hypervisor(backend.domid).open_device_model(guest.domid)
        assert model.nr_vcpus() == 1
        with pytest.raises(HypervisorError, match="SILO") as caught:
            model.create_ioreq_server()
        assert caught.value.errno == errno.EPERM


def test_xen_without_ioreq_servers() -> None:
    with EmulatedHost(ioreq_servers=False) as host:
        model = host.open_hypervisor().open_device_model(host.create_domain().domid)
        with pytest.raises(HypervisorError, match="CONFIG_IOREQ_SERVER") as caught:
            model.create_ioreq_server()
        assert caught.value.errno == errno.EOPNOTSUPP


def test_servers_survive_their_process(
    transport: str, open_hypervisor: Callable[..., EmulatedHypervisor], domain: Domain
) -> None:
    first = open_hypervisor()
    server = first.open_device_model(domain.domid).create_ioreq_server()
    first.close()
    open_hypervisor().open_device_model(domain.domid).destroy_ioreq_server(server)
