from __future__ import annotations

import errno

from hypothesis import given
from hypothesis import strategies as st

from tests.memory.fake_grants import FakeGrants
from xenvirtio.memory.address_space import AddressSpace
from xenvirtio.memory.buffer import HostBuffer
from xenvirtio.memory.grants import GrantMemory
from xenvirtio.memory.guest_memory import GuestMemory
from xenvirtio.memory.regions import RegionMemory, RegionSource, RegionTable
from xenvirtio.memory.transfer import TransferList

GRANT_BIT = 1 << 63
GUEST = 3
PLAIN = 0x4000_0000


class Setup:
    def __init__(self) -> None:
        self.ram = HostBuffer(4096)
        self.ram.view[:5] = b"plain"
        self.xen = FakeGrants(GUEST)
        self.xen.grant(1, b"grant")
        self.ours = HostBuffer(4096)
        regions = RegionSource(RegionTable([(PLAIN, 4096, self.ram.address, True)]))
        self.space = AddressSpace(RegionMemory(regions), GrantMemory(self.xen, GUEST))
        self.copies = TransferList()

    def add(self, guest: int) -> None:
        self.copies.add(guest, self.ours.address + 8 * self.copies.count, 5, False)

    def got(self) -> list[bytes]:
        return [bytes(self.ours.view[8 * index : 8 * index + 5]) for index in range(self.copies.count)]

    def failed(self) -> list[bool]:
        return [self.copies.has_failed(index) for index in range(self.copies.count)]


GRANTED = GRANT_BIT | 1 << 12
BAD_PLAIN = 0x1000
BAD_GRANT = GRANT_BIT | 9 << 12


def test_each_address_of_a_mixed_list_goes_its_own_way() -> None:
    setup = Setup()
    for guest in (PLAIN, GRANTED, GRANTED, PLAIN):
        setup.add(guest)
    assert setup.space.transfer(setup.copies) == 0
    assert setup.got() == [b"plain", b"grant", b"grant", b"plain"]
    assert len(setup.xen.calls) == 1


def test_failures_of_a_mixed_list_come_back_in_their_places() -> None:
    setup = Setup()
    for guest in (BAD_PLAIN, GRANTED, BAD_GRANT, PLAIN, BAD_GRANT):
        setup.add(guest)
    assert setup.space.transfer(setup.copies) == 3
    assert setup.failed() == [True, False, True, False, True]


def test_a_refused_grant_copy_leaves_the_plain_copies_alone() -> None:
    setup = Setup()
    for guest in (GRANTED, PLAIN, GRANTED):
        setup.add(guest)
    setup.xen.fail_next = errno.EINVAL
    assert setup.space.transfer(setup.copies) == 2
    assert setup.failed() == [True, False, True]
    assert setup.got()[1] == b"plain"


def test_a_list_of_one_kind_goes_there_whole() -> None:
    setup = Setup()
    setup.add(PLAIN)
    assert setup.space.transfer(setup.copies) == 0
    assert setup.xen.calls == []
    setup.copies.clear()
    setup.add(GRANTED)
    assert setup.space.transfer(setup.copies) == 0
    assert setup.got() == [b"grant"]


def test_an_empty_list_is_no_work() -> None:
    setup = Setup()
    assert setup.space.transfer(setup.copies) == 0
    assert setup.xen.calls == []


def test_writes_go_both_ways_too() -> None:
    setup = Setup()
    setup.ours.view[:10] = b"helloworld"
    setup.copies.add(PLAIN, setup.ours.address, 5, True)
    setup.copies.add(GRANTED, setup.ours.address + 5, 5, True)
    assert setup.space.transfer(setup.copies) == 0
    assert bytes(setup.ram.view[:5]) == b"hello"
    assert setup.xen.pages[1][:5] == b"world"


def test_locate_asks_the_side_that_knows_the_address() -> None:
    setup = Setup()
    assert setup.space.locate(PLAIN + 4000, 200, True) == setup.ram.address + 4000
    assert setup.space.run == 96
    assert setup.space.locate(GRANTED, 200, True) == 0
    assert setup.space.run == 0


def test_a_side_that_the_backend_cannot_reach_fails_the_request_and_no_more() -> None:
    setup = Setup()
    only_plain = AddressSpace(
        RegionMemory(RegionSource(RegionTable([(PLAIN, 4096, setup.ram.address, True)]))), GuestMemory()
    )
    setup.add(PLAIN)
    setup.add(GRANTED)
    assert only_plain.transfer(setup.copies) == 1
    assert setup.failed() == [False, True]


@given(st.lists(st.sampled_from([PLAIN, GRANTED, BAD_PLAIN, BAD_GRANT]), max_size=100))
def test_any_mixture_gives_each_entry_its_own_verdict(guests: list[int]) -> None:
    setup = Setup()
    for guest in guests:
        setup.add(guest)
    bad = [guest in (BAD_PLAIN, BAD_GRANT) for guest in guests]
    assert setup.space.transfer(setup.copies) == sum(bad)
    assert setup.failed() == bad
    for guest, got in zip(guests, setup.got(), strict=True):
        if guest == PLAIN:
            assert got == b"plain"
        elif guest == GRANTED:
            assert got == b"grant"
