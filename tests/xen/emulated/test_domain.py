"""Foreign mappings, interrupts of a domain, zombies."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable

import pytest

from xenvirtio.errors import HypervisorError, UsageError
from xenvirtio.ids import PAGE_SIZE, DomId, Gfn, Spi
from xenvirtio.xen.capabilities import Hypervisor
from xenvirtio.xen.emulated import Domain, DomainDestroyed, DomainEvent, EmulatedHost, EmulatedHypervisor

from .conftest import wait_until

RAM = 0x4000_0000 // PAGE_SIZE
DOM0 = DomId(0)


def test_foreign_frames_appear_side_by_side_with_holes(hypervisor: Hypervisor, domain: Domain) -> None:
    domain.memory.write((RAM + 5) * PAGE_SIZE, b"five")
    domain.memory.write((RAM + 2) * PAGE_SIZE, b"two")
    gone = Gfn(RAM + 3)
    domain.memory.remove_page(gone)
    frames = [Gfn(RAM + 5), Gfn(0x2000), Gfn(RAM + 2), gone]
    mapping, errors = hypervisor.open_foreign_memory(domain.domid).map_frames(domain.domid, frames, writable=True)
    with mapping:
        assert errors == [0, -errno.EINVAL, 0, -errno.EINVAL]
        assert ctypes.string_at(mapping.address, 4) == b"five"
        assert ctypes.string_at(mapping.address + 2 * PAGE_SIZE, 3) == b"two"
        ctypes.memset(mapping.address, ord("F"), 1)
        assert domain.memory.read((RAM + 5) * PAGE_SIZE, 4) == b"Five"


def test_foreign_mapping_succeeds_even_when_every_frame_fails(hypervisor: Hypervisor, domain: Domain) -> None:
    for domid, error in ((domain.domid, errno.EINVAL), (DomId(77), errno.ESRCH)):
        mapping, errors = hypervisor.open_foreign_memory(domid).map_frames(domid, [Gfn(1), Gfn(2)], writable=False)
        mapping.close()
        assert errors == [-error, -error]


def test_foreign_mapping_without_rights(
    transport: str, open_hypervisor: Callable[[int], EmulatedHypervisor], host: EmulatedHost, domain: Domain
) -> None:
    backend = host.create_domain(memory_bytes=4096).domid
    foreign = open_hypervisor(backend).open_foreign_memory(domain.domid)
    with pytest.raises(HypervisorError) as caught:
        foreign.map_frames(domain.domid, [Gfn(RAM)], writable=True)
    assert caught.value.errno == errno.EPERM


def map_by_grant(hypervisor: EmulatedHypervisor, domain: Domain) -> Callable[[], None]:
    reference = domain.grants.allocate(DOM0, [domain.memory.allocate_pages()])
    return hypervisor.open_grants().map(domain.domid, [reference], writable=True).close


def map_by_frame(hypervisor: EmulatedHypervisor, domain: Domain) -> Callable[[], None]:
    foreign = hypervisor.open_foreign_memory(domain.domid)
    return foreign.map_frames(domain.domid, [Gfn(RAM)], writable=True)[0].close


def map_ioreq_page(hypervisor: EmulatedHypervisor, domain: Domain) -> Callable[[], None]:
    model = hypervisor.open_device_model(domain.domid)
    return model.map_ioreq_page(model.create_ioreq_server()).close


@pytest.mark.parametrize("map_something", [map_by_grant, map_by_frame, map_ioreq_page])
@pytest.mark.parametrize("ending", ["unmap", "exit"])
def test_a_destroyed_domain_is_a_zombie_while_it_is_mapped(
    transport: str,
    open_hypervisor: Callable[..., EmulatedHypervisor],
    host: EmulatedHost,
    domain: Domain,
    map_something: Callable[[EmulatedHypervisor, Domain], Callable[[], None]],
    ending: str,
) -> None:
    events: list[DomainEvent] = []
    host.subscribe(lambda event, _: events.append(event))
    hypervisor = open_hypervisor()
    unmap = map_something(hypervisor, domain)
    host.destroy_domain(domain.domid)
    assert host.domain(domain.domid) is domain
    assert events == [DomainEvent.DYING]
    with pytest.raises(DomainDestroyed):
        domain.vcpu().mmio_read(0, 4)
    unmap() if ending == "unmap" else hypervisor.close()
    wait_until(lambda: host.domain(domain.domid) is None)
    wait_until(lambda: events == [DomainEvent.DYING, DomainEvent.GONE])


def test_a_zombie_has_no_servers_and_gets_none(hypervisor: Hypervisor, host: EmulatedHost, domain: Domain) -> None:
    model = hypervisor.open_device_model(domain.domid)
    server = model.create_ioreq_server()
    page = model.map_ioreq_page(server)
    host.destroy_domain(domain.domid)
    for call, error in (
        (lambda: model.destroy_ioreq_server(server), errno.ENOENT),
        (model.create_ioreq_server, errno.EINVAL),
    ):
        with pytest.raises(HypervisorError) as caught:
            call()
        assert caught.value.errno == error
    page.close()
    with pytest.raises(HypervisorError) as caught:
        model.nr_vcpus()
    assert caught.value.errno == errno.ESRCH


def test_destroying_an_unmapped_domain_leaves_nothing(host: EmulatedHost) -> None:
    events: list[tuple[DomainEvent, DomId]] = []
    host.subscribe(lambda event, domain: events.append((event, domain.domid)))
    domid = host.create_domain().domid
    host.destroy_domain(domid)
    assert events == [(DomainEvent.CREATED, domid), (DomainEvent.DYING, domid), (DomainEvent.GONE, domid)]
    assert host.create_domain().domid == domid + 1


def test_mistakes_of_the_toolstack(host: EmulatedHost, domain: Domain) -> None:
    for mistake in (
        lambda: host.destroy_domain(DOM0),
        lambda: host.destroy_domain(DomId(77)),
        lambda: host.create_domain(domid=domain.domid),
    ):
        with pytest.raises(UsageError):
            mistake()
    host.set_target(domain.domid, DomId(9))
    with pytest.raises(UsageError):
        host.set_target(domain.domid, DomId(10))


@pytest.mark.parametrize(("irq", "level"), [(0, 0), (16, 0), (31, 1), (64, 0), (1020, 1), (33, 2)])
def test_interrupts_that_cannot_be_set(hypervisor: Hypervisor, domain: Domain, irq: int, level: int) -> None:
    with pytest.raises(HypervisorError) as caught:
        hypervisor.open_device_model(domain.domid).set_irq_level(Spi(irq), level)
    assert caught.value.errno == errno.EINVAL


def test_an_interrupt_that_xen_drives_cannot_be_set(hypervisor: Hypervisor, host: EmulatedHost) -> None:
    domain = host.create_domain(reserved_spis=[Spi(32)])
    model = hypervisor.open_device_model(domain.domid)
    with pytest.raises(HypervisorError):
        model.set_irq_level(Spi(32), 1)
    model.set_irq_level(Spi(63), 1)


def test_edges_merge_while_pending_and_level_0_does_nothing(hypervisor: Hypervisor, domain: Domain) -> None:
    model, interrupt = hypervisor.open_device_model(domain.domid), domain.interrupt(Spi(33))
    calls: list[int] = []
    interrupt.on_raise(lambda: calls.append(1))
    model.set_irq_level(Spi(33), 0)
    assert not interrupt.wait(0)
    model.set_irq_level(Spi(33), 1)
    model.set_irq_level(Spi(33), 1)
    assert (interrupt.wait(0), interrupt.wait(0), interrupt.raised, len(calls)) == (True, False, 2, 2)


def test_irqfd(hypervisor: Hypervisor, domain: Domain) -> None:
    model, interrupt = hypervisor.open_device_model(domain.domid), domain.interrupt(Spi(34))
    descriptor = model.open_irqfd(Spi(34))
    assert descriptor is not None
    for _ in range(3):
        os.eventfd_write(descriptor, 1)
        assert interrupt.wait(5)
    model.close()
    os.eventfd_write(descriptor, 1)
    assert not interrupt.wait(0.02)
    os.close(descriptor)


def test_a_kernel_without_irqfd() -> None:
    with EmulatedHost(irqfd=False) as host:
        assert host.open_hypervisor().open_device_model(host.create_domain().domid).open_irqfd(Spi(33)) is None
