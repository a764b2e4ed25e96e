"""Grants: Xen's checks, gntdev's errors, the statuses of a copy."""

from __future__ import annotations

import ctypes
import errno
import struct
from collections.abc import Callable, Iterator

import pytest

from xenvirtio.errors import HypervisorError
from xenvirtio.ids import PAGE_SIZE, DomId, Gfn, GrantRef
from xenvirtio.xen.capabilities import Grants, Hypervisor
from xenvirtio.xen.emulated import Domain, EmulatedHost, EmulatedHypervisor
from xenvirtio.xen.emulated.grant_table import READING, READONLY, WRITING

from .conftest import wait_until

DOM0 = DomId(0)
SEGMENT = struct.Struct("<QQHHhH")
FROM_GRANT, TO_GRANT = 1, 2


@pytest.fixture
def grants(hypervisor: Hypervisor) -> Iterator[Grants]:
    grants = hypervisor.open_grants()
    yield grants
    grants.close()


def frames(domain: Domain, count: int) -> list[Gfn]:
    first = domain.memory.allocate_pages(count)
    return [Gfn(first + i) for i in range(count)]


def refused_mapping(grants: Grants, domain: Domain, references: list[GrantRef], *, writable: bool = True) -> None:
    with pytest.raises(HypervisorError) as caught:
        grants.map(domain.domid, references, writable=writable)
    assert caught.value.errno == errno.EINVAL


def test_scattered_frames_appear_side_by_side(grants: Grants, domain: Domain) -> None:
    gfns = frames(domain, 4)
    gfns = [gfns[2], gfns[0], gfns[1], gfns[3]]
    first = domain.grants.allocate(DOM0, gfns)
    for number, gfn in enumerate(gfns):
        domain.memory.write(gfn * PAGE_SIZE, bytes([number + 1]) * PAGE_SIZE)
    with grants.map(domain.domid, [GrantRef(first + i) for i in range(4)], writable=True) as mapping:
        expected = b"".join(bytes([number + 1]) * PAGE_SIZE for number in range(4))
        assert ctypes.string_at(mapping.address, mapping.length_bytes) == expected
        ctypes.memset(mapping.address + PAGE_SIZE, 9, 1)
        assert domain.memory.read(gfns[1] * PAGE_SIZE, 2) == b"\x09\x02"


def test_references_are_consecutive_and_reusable(domain: Domain) -> None:
    gfns = frames(domain, 600)
    first = domain.grants.allocate(DOM0, gfns)
    assert first == 8
    assert all(domain.grants.end_access(GrantRef(first + i)) for i in range(600))
    assert domain.grants.allocate(DOM0, gfns[:1]) == 8


def test_end_access_fails_while_mapped(grants: Grants, domain: Domain) -> None:
    reference = domain.grants.allocate(DOM0, frames(domain, 1))
    read_only = grants.map(domain.domid, [reference], writable=False)
    read_write = grants.map(domain.domid, [reference], writable=True)
    assert domain.grants.entry(reference)[0] & (READING | WRITING) == READING | WRITING
    assert not domain.grants.end_access(reference)
    read_write.close()
    assert domain.grants.entry(reference)[0] & (READING | WRITING) == READING
    assert not domain.grants.end_access(reference)
    read_only.close()
    read_only.close()
    assert domain.grants.end_access(reference)


def test_bad_references_fail_the_whole_mapping(grants: Grants, domain: Domain) -> None:
    good = domain.grants.allocate(DOM0, frames(domain, 1))
    read_only = domain.grants.allocate(DOM0, frames(domain, 1), readonly=True)
    others = domain.grants.allocate(DomId(5), frames(domain, 1))
    for bad in (read_only, others, GrantRef(100), GrantRef(99999)):
        refused_mapping(grants, domain, [good, bad])
    assert domain.grants.end_access(good)
    grants.map(domain.domid, [read_only], writable=False).close()
    assert domain.grants.entry(read_only)[0] & READONLY


def test_a_frame_without_ram_cannot_be_mapped(grants: Grants, domain: Domain) -> None:
    (gfn,) = frames(domain, 1)
    reference = domain.grants.allocate(DOM0, [gfn])
    domain.memory.remove_page(gfn)
    refused_mapping(grants, domain, [reference])
    domain.memory.restore_page(gfn)
    grants.map(domain.domid, [reference], writable=True).close()


def test_closing_the_node_unmaps(hypervisor: Hypervisor, domain: Domain) -> None:
    grants = hypervisor.open_grants()
    reference = domain.grants.allocate(DOM0, frames(domain, 1))
    grants.map(domain.domid, [reference], writable=True)
    grants.close()
    assert domain.grants.end_access(reference)


def test_the_end_of_a_process_unmaps(
    transport: str, open_hypervisor: Callable[..., EmulatedHypervisor], domain: Domain
) -> None:
    hypervisor = open_hypervisor()
    reference = domain.grants.allocate(DOM0, frames(domain, 1))
    hypervisor.open_grants().map(domain.domid, [reference], writable=True)
    hypervisor.close()
    wait_until(lambda: domain.grants.end_access(reference))


class Copier:
    """Builds segments around one local buffer and shows their statuses."""

    def __init__(self, grants: Grants, domain: Domain) -> None:
        self.grants = grants
        self.domid = domain.domid
        self.buffer = ctypes.create_string_buffer(3 * PAGE_SIZE)

    def local(self, offset: int = 0) -> int:
        return ctypes.addressof(self.buffer) + offset

    def grant(self, reference: int, offset: int = 0, domid: int | None = None) -> int:
        packed = struct.pack("<IHH", reference, offset, self.domid if domid is None else domid)
        return int.from_bytes(packed, "little")

    def run(self, *segments: tuple[int, int, int, int]) -> list[int]:
        """Copy (source, destination, length, flags) segments; return their statuses."""
        data = ctypes.create_string_buffer(b"".join(SEGMENT.pack(*s, 77, 0) for s in segments), 24 * len(segments))
        self.grants.copy(ctypes.addressof(data), len(segments))
        return [status for _, _, _, _, status, _ in SEGMENT.iter_unpack(data.raw)]


@pytest.fixture
def copier(grants: Grants, domain: Domain) -> Copier:
    return Copier(grants, domain)


def test_copy_in_both_directions(copier: Copier, domain: Domain) -> None:
    one, other = frames(domain, 2)
    first = domain.grants.allocate(DOM0, [one, other])
    domain.memory.write(one * PAGE_SIZE + 100, b"from the guest")
    ctypes.memmove(copier.local(1000), b"to the guest", 12)
    statuses = copier.run(
        (copier.grant(first, 100), copier.local(), 14, FROM_GRANT),
        (copier.local(1000), copier.grant(first + 1, PAGE_SIZE - 12), 12, TO_GRANT),
    )
    assert statuses == [0, 0]
    assert copier.buffer.raw[:14] == b"from the guest"
    assert domain.memory.read((other + 1) * PAGE_SIZE - 12, 12) == b"to the guest"
    assert domain.grants.end_access(first)


def test_each_segment_has_its_own_status(copier: Copier, domain: Domain) -> None:
    good = domain.grants.allocate(DOM0, frames(domain, 1))
    read_only = domain.grants.allocate(DOM0, frames(domain, 1), readonly=True)
    others = domain.grants.allocate(DomId(5), frames(domain, 1))
    no_ram = domain.grants.allocate(DOM0, [Gfn(1)])
    assert copier.run(
        (copier.grant(99999), copier.local(), 4, FROM_GRANT),
        (copier.grant(good), copier.local(), 4, FROM_GRANT),
        (copier.grant(read_only), copier.local(), 4, FROM_GRANT),
        (copier.local(), copier.grant(read_only), 4, TO_GRANT),
        (copier.grant(others), copier.local(), 4, FROM_GRANT),
        (copier.grant(200), copier.local(), 4, FROM_GRANT),
        (copier.grant(good), copier.grant(good), 4, FROM_GRANT | TO_GRANT),
        (copier.grant(8, domid=0), copier.local(), 4, FROM_GRANT),
        (copier.grant(8, domid=77), copier.local(), 4, FROM_GRANT),
        (copier.grant(no_ram), copier.local(), 4, FROM_GRANT),
        (copier.grant(99999), copier.local(), 0, FROM_GRANT),
    ) == [-3, 0, 0, -1, -1, -1, -1, -1, -2, -9, 0]


def test_a_malformed_segment_fails_the_whole_batch(copier: Copier, domain: Domain) -> None:
    good = domain.grants.allocate(DOM0, frames(domain, 1))
    for bad in (
        (copier.local(), copier.local(100), 4, 0),
        (copier.grant(good, PAGE_SIZE - 3), copier.local(), 4, FROM_GRANT),
        (copier.local(), copier.grant(good, 1), PAGE_SIZE, TO_GRANT),
    ):
        with pytest.raises(HypervisorError) as caught:
            copier.run((copier.grant(good), copier.local(), 4, FROM_GRANT), bad)
        assert caught.value.errno == errno.EINVAL


def test_copies_follow_a_domid_to_its_next_domain(host: EmulatedHost, copier: Copier, domain: Domain) -> None:
    def copied(guest: Domain) -> bytes:
        (gfn,) = frames(guest, 1)
        guest.memory.write(gfn * PAGE_SIZE, guest.crash_reason.encode() if guest.crash_reason else b"old!")
        reference = guest.grants.allocate(DOM0, [gfn])
        assert copier.run((copier.grant(reference), copier.local(), 4, FROM_GRANT)) == [0]
        return copier.buffer.raw[:4]

    assert copied(domain) == b"old!"
    host.destroy_domain(domain.domid)
    assert copier.run((copier.grant(8), copier.local(), 4, FROM_GRANT)) == [-2]
    successor = host.create_domain(domid=domain.domid, memory_bytes=1 << 20)
    successor.crash("new!")
    assert copied(successor) == b"new!"


def test_silo_forbids_grants_between_unprivileged_domains() -> None:
    with EmulatedHost(silo=True) as host:
        guest, backend = host.create_domain(), host.create_domain()
        reference = guest.grants.allocate(backend.domid, frames(guest, 1))
        grants = host.open_hypervisor(backend.domid).open_grants()
        refused_mapping(grants, guest, [reference])
        copier = Copier(grants, guest)
        assert copier.run((copier.grant(reference), copier.local(), 4, FROM_GRANT)) == [-8]
