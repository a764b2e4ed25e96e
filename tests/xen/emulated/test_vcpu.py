"""A guest's vCPUs against a small backend: what real Xen was seen to do (backend-on-real-xen.md, 1.2 to 1.5)."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from xenvirtio.ids import Spi
from xenvirtio.xen.capabilities import Hypervisor
from xenvirtio.xen.emulated import DataAbort, Domain, DomainDestroyed, EmulatedHost, GuestCrashed

from .conftest import GuestThread, wait_until
from .register_backend import BASE, INPROCESS, INVALIDATE, LENGTH, READY, RESPONSE_READY, RegisterBackend

Run = Callable[[Callable[[], object]], GuestThread]


def test_accesses_reach_the_backend_and_come_back(backend: RegisterBackend, domain: Domain) -> None:
    backend.start()
    domain.vcpu(0).mmio_write(BASE + 4, 4, 0x1_1234_5678)
    assert domain.vcpu(0).mmio_read(BASE + 4, 4) == 0x12345678
    assert domain.vcpu(0).mmio_read(BASE + 4, 1) == 0x78
    assert domain.vcpu(1).mmio_read(BASE + 4, 4) == 0x12345678


def test_the_first_request_of_a_guest_is_an_invalidate(backend: RegisterBackend, domain: Domain) -> None:
    backend.start()
    domain.vcpu(0).mmio_read(BASE, 4)
    domain.vcpu(0).mmio_read(BASE, 4)
    assert backend.requests == [(INVALIDATE, 0, False), (1, BASE, True), (1, BASE, True)]


def test_invalidate_goes_to_every_enabled_server(hypervisor: Hypervisor, domain: Domain) -> None:
    model = hypervisor.open_device_model(domain.domid)
    with RegisterBackendPair(hypervisor, domain) as (one, other):
        disabled = model.create_ioreq_server()
        domain.vcpu(1).invalidate()
        assert (one.requests, other.requests) == ([(INVALIDATE, 0, False)], [(INVALIDATE, 0, False)])
    model.destroy_ioreq_server(disabled)


class RegisterBackendPair:
    def __init__(self, hypervisor: Hypervisor, domain: Domain) -> None:
        self.backends = [RegisterBackend(hypervisor, domain.domid).start() for _ in range(2)]

    def __enter__(self) -> tuple[RegisterBackend, RegisterBackend]:
        return self.backends[0], self.backends[1]

    def __exit__(self, *exc_info: object) -> None:
        for backend in self.backends:
            backend.close()


def test_the_newest_server_wins(hypervisor: Hypervisor, domain: Domain) -> None:
    with RegisterBackendPair(hypervisor, domain) as (older, newer):
        domain.vcpu(1).mmio_write(BASE, 4, 7)
        assert (older.registers, newer.registers) == ({}, {BASE: 7})
        newer.model.set_server_state(newer.server, enabled=False)
        domain.vcpu(1).mmio_write(BASE, 4, 8)
        assert (older.registers, newer.registers) == ({BASE: 8}, {BASE: 7})


@pytest.mark.parametrize("address", [BASE - 4, BASE + LENGTH, BASE + LENGTH - 2])
def test_an_access_that_nobody_claims_whole_is_a_data_abort(
    backend: RegisterBackend, domain: Domain, address: int
) -> None:
    backend.start()
    with pytest.raises(DataAbort):
        domain.vcpu(1).mmio_read(address, 4)
    with pytest.raises(GuestCrashed):
        domain.vcpu(0).mmio_read(BASE, 4)


def test_binding_makes_a_spurious_event(backend: RegisterBackend) -> None:
    assert backend.wait_event()
    assert backend.events.read() == backend.ports
    assert [backend.state(0), backend.state(1)] == [0, 0]


def test_an_event_read_and_not_unmasked_is_silence(backend: RegisterBackend, domain: Domain, run_guest: Run) -> None:
    backend.events.read()  # the spurious ones, and never written back
    guest = run_guest(lambda: domain.vcpu(1).mmio_read(BASE, 4))
    wait_until(lambda: domain.vcpu(1).is_waiting)
    assert not backend.wait_event(0.1)
    assert guest.thread.is_alive()
    backend.events.unmask([backend.ports[1]])  # what came meanwhile is delivered now
    assert backend.wait_event()
    assert backend.events.read() == [backend.ports[1]]
    backend.answer_all()
    assert guest.join() == 0


def test_one_read_returns_the_ports_of_both_vcpus(backend: RegisterBackend, domain: Domain, run_guest: Run) -> None:
    backend.events.unmask(backend.events.read())
    guests = [run_guest(lambda vcpu=vcpu: vcpu.mmio_read(BASE, 4)) for vcpu in domain.vcpus]  # type: ignore[misc]
    wait_until(lambda: all(vcpu.is_waiting for vcpu in domain.vcpus))
    ports = backend.events.read()
    assert sorted(ports) == backend.ports
    backend.events.unmask(ports)
    backend.answer_all()  # the INVALIDATE of vCPU 0
    backend.start()
    assert [guest.join() for guest in guests] == [0, 0]


def test_going_back_in_state_crashes_the_guest(backend: RegisterBackend, domain: Domain, run_guest: Run) -> None:
    guest = run_guest(lambda: domain.vcpu(1).mmio_read(BASE, 4))
    wait_until(lambda: domain.vcpu(1).is_waiting)

    def has_seen_both_states() -> bool:
        for state in (INPROCESS, READY):
            backend.set_state(1, state)
            backend.events.notify(backend.ports[1])
        return not guest.thread.is_alive()

    wait_until(has_seen_both_states)
    assert isinstance(guest.error, GuestCrashed)
    assert "state transition" in str(domain.crash_reason)


def test_a_state_that_does_not_exist_crashes_the_guest(
    backend: RegisterBackend, domain: Domain, run_guest: Run
) -> None:
    guest = run_guest(lambda: domain.vcpu(1).mmio_read(BASE, 4))
    wait_until(lambda: domain.vcpu(1).is_waiting)
    backend.set_state(1, 9)
    backend.events.notify(backend.ports[1])
    guest.join()
    assert isinstance(guest.error, GuestCrashed)


def test_a_spoilt_slot_is_a_data_abort(backend: RegisterBackend, domain: Domain) -> None:
    backend.set_state(1, RESPONSE_READY)
    with pytest.raises(DataAbort):
        domain.vcpu(1).mmio_read(BASE, 4)


def test_destroy_with_a_request_in_flight_blocks_the_vcpu_until_the_domain_ends(
    host: EmulatedHost, backend: RegisterBackend, domain: Domain, run_guest: Run
) -> None:
    guest = run_guest(lambda: domain.vcpu(1).mmio_read(BASE, 4))
    wait_until(lambda: backend.state(1) == READY)
    backend.model.destroy_ioreq_server(backend.server)
    backend.answer_all()  # too late: the page is stale
    guest.thread.join(0.2)
    assert guest.thread.is_alive()
    host.destroy_domain(domain.domid)
    guest.join()
    assert isinstance(guest.error, DomainDestroyed)


def test_unmap_drain_destroy_is_clean(backend: RegisterBackend, domain: Domain, run_guest: Run) -> None:
    def use_the_device_until_it_is_gone() -> None:
        while True:
            domain.vcpu(1).mmio_write(BASE, 4, 1)

    guest = run_guest(use_the_device_until_it_is_gone)
    backend.start()
    wait_until(lambda: len(backend.requests) > 20)
    backend.stop()
    backend.model.unmap_io_range(backend.server, BASE, BASE + LENGTH - 1)
    while backend.state(1):
        backend.answer_all()
    backend.model.destroy_ioreq_server(backend.server)
    guest.join()
    assert isinstance(guest.error, DataAbort)


def test_a_request_survives_the_backend_and_its_successor_answers(
    host: EmulatedHost, domain: Domain, run_guest: Run
) -> None:
    first = host.open_hypervisor()
    dead = RegisterBackend(first, domain.domid)
    guest = run_guest(lambda: domain.vcpu(1).mmio_read(BASE + 8, 4))
    wait_until(lambda: dead.state(1) == READY)
    dead.set_state(1, INPROCESS)
    first.close()
    heir = RegisterBackend(host.open_hypervisor(), domain.domid, adopt=dead.server)
    assert heir.remote_port(1)
    heir.registers[BASE + 8] = 99
    heir.start()
    assert guest.join() == 99
    heir.close()


def test_interrupts_are_counted(hypervisor: Hypervisor, host: EmulatedHost, domain: Domain) -> None:
    model = hypervisor.open_device_model(domain.domid)
    model.set_irq_level(Spi(33), 1)
    assert domain.interrupt(Spi(33)).wait(5)
    assert host.counters.snapshot()["interrupts"] == 1
