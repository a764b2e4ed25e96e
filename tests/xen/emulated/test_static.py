"""Static channels and regions of the emulated host: as seen of them on real Xen."""

from __future__ import annotations

import ctypes
import errno
import select
from collections.abc import Iterator

import pytest

from xenvirtio.errors import ConfigurationError, HypervisorError, UsageError
from xenvirtio.ids import DomId, EventPort
from xenvirtio.xen.emulated import EmulatedHost
from xenvirtio.xen.emulated.client import EmulatedEventChannels

A, B = DomId(1), DomId(2)


@pytest.fixture
def host() -> Iterator[EmulatedHost]:
    with EmulatedHost(silo=True) as host:
        for domid in (A, B):
            host.create_domain(memory_bytes=1 << 20, domid=domid)
        host.add_static_channel(A, 10, B, 11)
        yield host


def is_pending(events: EmulatedEventChannels) -> bool:
    return bool(select.select([events.fileno()], [], [], 0)[0])


def test_a_static_channel_works_under_silo_and_keeps_events_for_whoever_binds(host: EmulatedHost) -> None:
    one = host.open_hypervisor(A).open_event_channels()
    assert one.bind_static(EventPort(10)) == 10
    for _ in range(200):
        one.notify(EventPort(10))
    other = host.open_hypervisor(B).open_event_channels()
    other.bind_static(EventPort(11))
    assert other.read() == [11]
    assert not is_pending(other)
    other.close()
    one.notify(EventPort(10))
    again = host.open_hypervisor(B).open_event_channels()
    again.bind_static(EventPort(11))
    assert again.read() == [11]


def test_a_port_has_one_holder(host: EmulatedHost) -> None:
    hypervisor = host.open_hypervisor(A)
    one, two = hypervisor.open_event_channels(), host.open_hypervisor(A).open_event_channels()
    one.bind_static(EventPort(10))
    with pytest.raises(HypervisorError) as caught:
        one.bind_static(EventPort(10))
    assert caught.value.errno == errno.EISCONN
    with pytest.raises(HypervisorError) as caught:
        two.bind_static(EventPort(10))
    assert caught.value.errno == errno.EBUSY
    hypervisor.close()  # as a killed process
    two.bind_static(EventPort(10))


def test_a_port_that_does_not_exist_binds_and_stays_silent(host: EmulatedHost) -> None:
    events = host.open_hypervisor(A).open_event_channels()
    assert events.bind_static(EventPort(110)) == 110
    events.notify(EventPort(110))
    assert not is_pending(events)


def test_static_ports_are_given_once(host: EmulatedHost) -> None:
    with pytest.raises(UsageError, match="taken"):
        host.add_static_channel(A, 12, B, 11)
    with pytest.raises(UsageError, match="no domain"):
        host.add_static_channel(A, 12, DomId(9), 11)


def test_a_region_is_shared_and_never_cleared(host: EmulatedHost) -> None:
    host.add_static_region("shm", 8192, [A, B])
    one = host.open_hypervisor(A).map_static_region("shm", 0x8000000, 8192)
    two = host.open_hypervisor(B).map_static_region("shm", 0x9000000, 8192)
    assert ctypes.string_at(one.mapping.address, 8192) == b"\xc2" * 8192
    ctypes.memmove(one.mapping.address, b"hello", 5)
    assert ctypes.string_at(two.mapping.address, 5) == b"hello"
    one.mapping.close()
    two.mapping.close()


def test_a_region_of_others_or_of_another_size_is_refused(host: EmulatedHost) -> None:
    host.add_static_region("shm", 8192, [A])
    with pytest.raises(ConfigurationError, match="none of that id"):
        host.open_hypervisor(B).map_static_region("shm", 0, 8192)
    with pytest.raises(ConfigurationError, match="0x2000 bytes"):
        host.open_hypervisor(A).map_static_region("shm", 0, 4096)


def test_a_domain_grants_pages_of_its_own(host: EmulatedHost) -> None:
    allocator = host.open_hypervisor(A).open_grant_allocator()
    granted = allocator.allocate(DomId(0), 3, writable=True)
    ctypes.memmove(granted.mapping.address + 4096, b"granted", 7)
    with host.open_hypervisor().open_grants().map(A, granted.references, writable=True) as mapping:
        assert ctypes.string_at(mapping.address + 4096, 7) == b"granted"
    granted.mapping.close()
    with pytest.raises(HypervisorError):
        host.open_hypervisor().open_grants().map(A, granted.references, writable=True)
    with pytest.raises(HypervisorError) as caught:
        allocator.allocate(DomId(0), 1 << 20, writable=True)
    assert caught.value.errno == errno.ENOMEM
