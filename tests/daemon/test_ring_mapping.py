"""Each area is mapped by its own address; what cannot be mapped leaves nothing mapped."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator

import pytest

from xenvirtio.daemon.ring_mapping import RingMapping
from xenvirtio.errors import GuestError
from xenvirtio.ids import GRANT_BIT, PAGE_SIZE, DomId, Gfn
from xenvirtio.virtio.device import QueueConfiguration
from xenvirtio.xen.emulated import Domain, EmulatedHost, EmulatedHypervisor

SIZE = 256


@pytest.fixture
def host() -> Iterator[EmulatedHost]:
    with EmulatedHost() as host:
        yield host


@pytest.fixture
def guest(host: EmulatedHost) -> Domain:
    return host.create_domain(memory_bytes=4 << 20)


@pytest.fixture
def hypervisor(host: EmulatedHost) -> Iterator[EmulatedHypervisor]:
    hypervisor = host.open_hypervisor()
    yield hypervisor
    hypervisor.close()


def map_rings(hypervisor: EmulatedHypervisor, guest: Domain, *areas: int) -> RingMapping:
    foreign, grants = hypervisor.open_foreign_memory(guest.domid), hypervisor.open_grants()
    return RingMapping(foreign, grants, guest.domid, 0, QueueConfiguration(SIZE, *areas))


def plain(guest: Domain, pages: int = 2) -> int:
    return guest.memory.allocate_pages(pages) * PAGE_SIZE


def granted(guest: Domain, pages: int = 2) -> tuple[int, int]:
    """Return (DMA address, guest-physical address)."""
    first = guest.memory.allocate_pages(pages)
    reference = guest.grants.allocate(DomId(0), [Gfn(first + n) for n in range(pages)])
    return GRANT_BIT | reference * PAGE_SIZE, first * PAGE_SIZE


def test_areas_may_be_frames_and_grants_side_by_side(hypervisor: EmulatedHypervisor, guest: Domain) -> None:
    desc = plain(guest)
    avail, avail_gpa = granted(guest)
    used, used_gpa = granted(guest)
    rings = map_rings(hypervisor, guest, desc, avail + 2, used + PAGE_SIZE - 4)  # the last one lies across two pages
    guest.memory.write(desc, b"DESC")
    guest.memory.write(avail_gpa + 2, b"AVAIL")
    assert ctypes.string_at(rings.desc, 4) == b"DESC"
    assert ctypes.string_at(rings.avail, 5) == b"AVAIL"
    ctypes.memmove(rings.used, b"USEDUSED", 8)
    assert guest.memory.read(used_gpa + PAGE_SIZE - 4, 8) == b"USEDUSED"
    assert guest.mappings > 0
    rings.close()
    rings.close()
    assert guest.mappings == 0


BAD: dict[str, tuple[Callable[[int], tuple[int, int, int]], str]] = {
    "desc not aligned": (lambda ok: (ok + 8, ok, ok), "not aligned to 16"),
    "avail not aligned": (lambda ok: (ok, ok + 1, ok), "not aligned to 2"),
    "used not aligned": (lambda ok: (ok, ok, ok + 2), "not aligned to 4"),
    "no memory": (lambda ok: (ok, ok, 0x10_0000_0000), "cannot be mapped"),
    "beyond frames": (lambda ok: (ok, ok, 1 << 62), "out of range"),
    "no grant": (lambda ok: (ok, ok, GRANT_BIT | 0x100 * PAGE_SIZE), "cannot be mapped"),
    "beyond references": (lambda ok: (ok, ok, (1 << 64) - PAGE_SIZE), "out of range"),
    "over the last reference": (lambda ok: (ok, ok, GRANT_BIT | ((1 << 44) - 4)), "out of range"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_area_is_the_guests_fault_and_nothing_stays_mapped(
    hypervisor: EmulatedHypervisor, guest: Domain, name: str
) -> None:
    areas, problem = BAD[name]
    with pytest.raises(GuestError, match=problem) as error:
        map_rings(hypervisor, guest, *areas(plain(guest)))
    assert error.value.queue_index == 0
    assert guest.mappings == 0


def test_a_read_only_grant_is_no_ring(hypervisor: EmulatedHypervisor, guest: Domain) -> None:
    first = guest.memory.allocate_pages(2)
    reference = guest.grants.allocate(DomId(0), [first, Gfn(first + 1)], readonly=True)
    with pytest.raises(GuestError, match="cannot be mapped"):
        map_rings(hypervisor, guest, plain(guest), plain(guest), GRANT_BIT | reference * PAGE_SIZE)
    assert guest.mappings == 0


def test_a_ring_over_the_end_of_memory_is_refused(hypervisor: EmulatedHypervisor, guest: Domain) -> None:
    bank = guest.memory.banks[0]
    last = bank.start + bank.length_bytes - 16
    with pytest.raises(GuestError, match="cannot be mapped"):
        map_rings(hypervisor, guest, last, plain(guest), plain(guest))
    assert guest.mappings == 0
