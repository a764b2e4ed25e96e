from __future__ import annotations

import errno
import select
from collections.abc import Callable

import pytest

from xenvirtio.errors import HypervisorError
from xenvirtio.ids import DomId, EventPort, RemotePort
from xenvirtio.xen.capabilities import VIRQ_ARGO, EventChannels, Hypervisor
from xenvirtio.xen.emulated import Domain, EmulatedHost, EmulatedHypervisor

from .conftest import wait_until

DOM0 = DomId(0)


@pytest.fixture
def events(hypervisor: Hypervisor) -> EventChannels:
    return hypervisor.open_event_channels()


def refused(error: int, call: Callable[..., object], *arguments: object) -> None:
    with pytest.raises(HypervisorError) as caught:
        call(*arguments)
    assert errno.errorcode[caught.value.errno] == errno.errorcode[error]


def is_readable(events: EventChannels) -> bool:
    poll = select.poll()
    poll.register(events.fileno(), select.POLLIN)
    return bool(poll.poll(0))


def test_both_directions(events: EventChannels, domain: Domain) -> None:
    remote = domain.event_channels.allocate_unbound(DOM0)
    port = events.bind_interdomain(domain.domid, RemotePort(remote))
    assert events.read() == [port]
    events.unmask([port])
    assert not is_readable(events)
    assert events.read() == []
    domain.event_channels.notify(remote)
    domain.event_channels.notify(remote)
    assert events.read() == [port]
    assert not domain.event_channels.wait(remote, 0)
    events.notify(port)
    assert domain.event_channels.wait(remote, 5)


def test_a_guest_binds_to_a_port_of_the_backend(events: EventChannels, domain: Domain) -> None:
    port = events.bind_unbound(domain.domid)
    remote = domain.event_channels.bind_interdomain(DOM0, port)
    assert domain.event_channels.wait(remote, 5)
    domain.event_channels.notify(remote)
    assert events.read() == [port]
    events.notify(port)
    assert domain.event_channels.wait(remote, 5)


def test_refusals(events: EventChannels, domain: Domain) -> None:
    remote = RemotePort(domain.event_channels.allocate_unbound(DOM0))
    port = events.bind_interdomain(domain.domid, remote)
    refused(errno.EINVAL, events.bind_interdomain, domain.domid, remote)
    refused(errno.EINVAL, events.bind_interdomain, domain.domid, RemotePort(55))
    refused(errno.ESRCH, events.bind_interdomain, DomId(77), remote)
    refused(errno.ENOTCONN, events.notify, EventPort(port + 1))
    refused(errno.ENOTCONN, events.unbind, EventPort(port + 1))
    events.unmask([EventPort(port + 1)])


def test_a_port_for_another_domain_is_not_ours(events: EventChannels, domain: Domain) -> None:
    refused(errno.EINVAL, events.bind_interdomain, domain.domid, domain.event_channels.allocate_unbound(DomId(1)))


def test_restricted_channels_bind_to_one_domain(hypervisor: Hypervisor, domain: Domain) -> None:
    remote = RemotePort(domain.event_channels.allocate_unbound(DOM0))
    restricted = hypervisor.open_event_channels(DomId(9))
    refused(errno.EACCES, restricted.bind_interdomain, domain.domid, remote)
    refused(errno.EACCES, restricted.bind_unbound, DomId(9))
    hypervisor.open_event_channels(domain.domid).bind_interdomain(domain.domid, remote)


def test_unbinding_and_closing_free_the_remote_port(hypervisor: Hypervisor, domain: Domain) -> None:
    remote = RemotePort(domain.event_channels.allocate_unbound(DOM0))
    events = hypervisor.open_event_channels()
    events.unbind(events.bind_interdomain(domain.domid, remote))
    events.bind_interdomain(domain.domid, remote)
    events.close()
    again = hypervisor.open_event_channels()
    port = again.bind_interdomain(domain.domid, remote)
    assert again.read() == [port]


def test_the_end_of_a_process_frees_the_remote_port(
    transport: str, open_hypervisor: Callable[..., EmulatedHypervisor], domain: Domain
) -> None:
    remote = RemotePort(domain.event_channels.allocate_unbound(DOM0))
    first, second = open_hypervisor(), open_hypervisor()
    first.open_event_channels().bind_interdomain(domain.domid, remote)
    first.close()
    events = second.open_event_channels()

    def is_bound() -> bool:
        try:
            return bool(events.bind_interdomain(domain.domid, remote))
        except HypervisorError:
            return False

    wait_until(is_bound)


def test_notifying_a_guest_that_is_gone_is_no_error(events: EventChannels, domain: Domain) -> None:
    remote = domain.event_channels.allocate_unbound(DOM0)
    port = events.bind_interdomain(domain.domid, RemotePort(remote))
    domain.event_channels.close(remote)
    events.notify(port)
    events.unbind(port)


def test_an_interrupt_of_xen(events: EventChannels, domain: Domain, host: EmulatedHost) -> None:
    host.switch.raise_virq(DOM0, VIRQ_ARGO)  # nobody listens yet
    port = events.bind_virq(VIRQ_ARGO)
    assert events.read() == []
    host.switch.raise_virq(domain.domid, VIRQ_ARGO)
    assert events.read() == []
    host.switch.raise_virq(DOM0, VIRQ_ARGO)
    assert events.read() == [port]
    guests = domain.event_channels.bind_virq(VIRQ_ARGO)
    host.switch.raise_virq(domain.domid, VIRQ_ARGO)
    assert domain.event_channels.wait(guests, 5)


def test_an_interrupt_of_xen_has_one_listener_in_a_domain(events: EventChannels, hypervisor: Hypervisor) -> None:
    port = events.bind_virq(VIRQ_ARGO)
    other = hypervisor.open_event_channels()
    refused(errno.EEXIST, other.bind_virq, VIRQ_ARGO)
    refused(errno.EINVAL, other.bind_virq, 24)
    refused(errno.EINVAL, other.bind_interdomain, DOM0, RemotePort(port))
    refused(errno.EACCES, hypervisor.open_event_channels(DomId(9)).bind_virq, VIRQ_ARGO)
    events.unbind(port)
    other.bind_virq(VIRQ_ARGO)
