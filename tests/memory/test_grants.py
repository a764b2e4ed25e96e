from __future__ import annotations

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.memory.fake_grants import FakeGrants, Segment
from xenvirtio.memory.buffer import HostBuffer
from xenvirtio.memory.grants import GrantMemory
from xenvirtio.memory.transfer import TransferList

GRANT_BIT = 1 << 63
PAGE = 4096
GUEST = 5


def address(reference: int, offset: int = 0) -> int:
    return GRANT_BIT | (reference << 12) | offset


class Setup:
    def __init__(self) -> None:
        self.xen = FakeGrants(GUEST)
        self.memory = GrantMemory(self.xen, GUEST)
        self.ours = HostBuffer(16 * PAGE)
        self.copies = TransferList()

    def host(self, offset: int = 0) -> int:
        return self.ours.address + offset

    def failed(self) -> list[bool]:
        return [self.copies.has_failed(index) for index in range(self.copies.count)]


@pytest.fixture
def setup() -> Setup:
    return Setup()


def test_a_read_becomes_one_segment_with_the_reference_as_source(setup: Setup) -> None:
    setup.xen.grant(8, b"0123456789")
    setup.copies.add(address(8, 3), setup.host(), 4, False)
    assert setup.memory.transfer(setup.copies) == 0
    assert bytes(setup.ours.view[:4]) == b"3456"
    assert setup.xen.calls == [[Segment(False, setup.host(), GUEST, 8, 3, 4)]]


def test_a_write_becomes_one_segment_with_the_reference_as_destination(setup: Setup) -> None:
    page = setup.xen.grant(8)
    setup.ours.view[:4] = b"data"
    setup.copies.add(address(8, PAGE - 4), setup.host(), 4, True)
    assert setup.memory.transfer(setup.copies) == 0
    assert page[-4:] == b"data"
    assert setup.xen.calls == [[Segment(True, setup.host(), GUEST, 8, PAGE - 4, 4)]]


@pytest.mark.parametrize(
    ("offset", "length", "pieces"),
    [
        (0, PAGE, [(7, 0, PAGE)]),
        (0, PAGE + 1, [(7, 0, PAGE), (8, 0, 1)]),
        (PAGE - 1, 2, [(7, PAGE - 1, 1), (8, 0, 1)]),
        (100, 2 * PAGE, [(7, 100, PAGE - 100), (8, 0, PAGE), (9, 0, 100)]),
        (0, 3 * PAGE, [(7, 0, PAGE), (8, 0, PAGE), (9, 0, PAGE)]),
        (PAGE - 1, 1, [(7, PAGE - 1, 1)]),
    ],
)
@pytest.mark.parametrize("to_guest", [False, True])
def test_a_buffer_over_pages_uses_consecutive_references(
    setup: Setup, offset: int, length: int, pieces: list[tuple[int, int, int]], to_guest: bool
) -> None:
    for reference in (7, 8, 9):
        setup.xen.grant(reference)
    setup.copies.add(address(7, offset), setup.host(), length, to_guest)
    assert setup.memory.transfer(setup.copies) == 0
    (call,) = setup.xen.calls
    assert [(s.reference, s.offset, s.length_bytes) for s in call] == pieces
    assert [s.host for s in call] == [setup.host(sum(p[2] for p in pieces[:i])) for i in range(len(pieces))]
    assert {s.to_guest for s in call} == {to_guest}


def test_all_copies_of_a_list_go_in_one_call(setup: Setup) -> None:
    for reference in range(20):
        setup.xen.grant(reference, bytes([reference]) * PAGE)
    for reference in range(20):
        setup.copies.add(address(reference, 50), setup.host(reference * 16), 16, reference % 2 == 1)
    assert setup.memory.transfer(setup.copies) == 0
    assert len(setup.xen.calls) == 1
    assert (setup.memory.calls, setup.memory.segments) == (1, 20)


@pytest.mark.parametrize(
    ("reference", "length", "works"),
    [
        (0xFFFF_FFFF, PAGE, True),
        (0xFFFF_FFFF, PAGE + 1, False),  # the next reference would be 2^32
        (0xFFFF_FFFE, 2 * PAGE, True),
        (0xFFFF_FFFE, 2 * PAGE + 1, False),
    ],
)
def test_references_do_not_wrap(setup: Setup, reference: int, length: int, works: bool) -> None:
    for granted in (0, 1, 0xFFFF_FFFE, 0xFFFF_FFFF):
        setup.xen.grant(granted)
    setup.copies.add(address(reference), setup.host(), length, False)
    assert setup.memory.transfer(setup.copies) == (0 if works else 1)
    assert setup.failed() == [not works]
    assert bool(setup.xen.calls) == works, "a reference that cannot exist is not even asked for"


@pytest.mark.parametrize("bit", range(44, 63))
def test_bits_above_the_reference_are_not_dropped(setup: Setup, bit: int) -> None:
    setup.xen.grant(8)
    setup.copies.add(address(8) | 1 << bit, setup.host(), 4, False)
    assert setup.memory.transfer(setup.copies) == 1
    assert setup.failed() == [True]
    assert setup.xen.calls == []


@pytest.mark.parametrize("bit", range(12, 44))
def test_every_bit_of_the_reference_counts(setup: Setup, bit: int) -> None:
    setup.xen.grant(1 << (bit - 12), b"x")
    setup.copies.add(GRANT_BIT | 1 << bit, setup.host(), 1, False)
    assert setup.memory.transfer(setup.copies) == 0
    assert bytes(setup.ours.view[:1]) == b"x"


def test_plain_addresses_are_refused_without_asking_xen(setup: Setup) -> None:
    setup.copies.add(8 << 12, setup.host(), 4, False)
    assert setup.memory.transfer(setup.copies) == 1
    assert setup.xen.calls == []


def test_a_bad_reference_fails_its_entry_only(setup: Setup) -> None:
    setup.xen.grant(1, b"one")
    setup.xen.grant(3, b"three")
    for position, reference in enumerate((1, 2, 3)):
        setup.copies.add(address(reference), setup.host(16 * position), 5, False)
    assert setup.memory.transfer(setup.copies) == 1
    assert setup.failed() == [False, True, False]
    assert bytes(setup.ours.view[32:37]) == b"three"


def test_one_bad_page_fails_the_whole_buffer_once(setup: Setup) -> None:
    setup.xen.grant(1)
    setup.xen.grant(4)
    setup.copies.add(address(1), setup.host(), 4 * PAGE, False)  # 2 and 3 are missing
    assert setup.memory.transfer(setup.copies) == 1
    assert setup.failed() == [True]


def test_writing_to_a_read_only_grant_fails_its_entry(setup: Setup) -> None:
    page = setup.xen.grant(1, b"keep", writable=False)
    setup.copies.add(address(1), setup.host(), 4, True)
    assert setup.memory.transfer(setup.copies) == 1
    assert page[:4] == b"keep"


def test_statuses_of_an_earlier_call_are_forgotten(setup: Setup) -> None:
    setup.copies.add(address(2), setup.host(), 4, False)
    assert setup.memory.transfer(setup.copies) == 1
    setup.xen.grant(2)
    setup.copies.clear()
    setup.copies.add(address(2), setup.host(), 4, False)
    assert setup.memory.transfer(setup.copies) == 0
    assert setup.failed() == [False]


def test_a_refused_call_fails_everything_in_it(setup: Setup) -> None:
    setup.xen.grant(1)
    setup.copies.add(address(1), setup.host(), 4, False)
    setup.copies.add(address(1), setup.host(), 4, True)
    setup.copies.add(0x1000, setup.host(), 4, True)  # failed before the call: counted once
    setup.xen.fail_next = errno.EINVAL
    assert setup.memory.transfer(setup.copies) == 3
    assert setup.failed() == [True, True, True]


def test_nothing_to_copy_is_no_call(setup: Setup) -> None:
    assert setup.memory.transfer(setup.copies) == 0
    setup.copies.add(address(1), setup.host(), 0, False)
    assert setup.memory.transfer(setup.copies) == 0
    assert setup.xen.calls == []
    assert setup.memory.calls == 0


def test_more_segments_than_were_reserved(setup: Setup) -> None:
    for reference in range(1500):
        setup.xen.grant(reference, bytes([reference % 251]))
        setup.copies.add(address(reference), setup.host(reference), 1, False)
    assert setup.memory.transfer(setup.copies) == 0
    assert len(setup.xen.calls) == 1
    assert bytes(setup.ours.view[:1500]) == bytes(reference % 251 for reference in range(1500))


def test_granted_memory_cannot_be_addressed_in_place(setup: Setup) -> None:
    setup.xen.grant(1)
    assert setup.memory.locate(address(1), 4, False) == 0
    assert setup.memory.run == 0


@given(
    st.lists(
        st.tuples(
            st.one_of(
                st.integers(0, 2**64 - 1),
                st.builds(address, st.integers(0, 6), st.integers(0, PAGE - 1)),
            ),
            st.integers(0, 3 * PAGE),
            st.booleans(),
        ),
        max_size=40,
    )
)
def test_any_list_ends_with_a_verdict_per_entry(entries: list[tuple[int, int, bool]]) -> None:
    """The fake refuses a malformed segment with EINVAL for all, so one good entry that fails would show."""
    setup = Setup()
    for reference in range(4):
        setup.xen.grant(reference)
    for guest, length, to_guest in entries:
        setup.copies.add(guest, setup.host(), length, to_guest)
    failures = setup.memory.transfer(setup.copies)
    assert failures == sum(setup.failed())
    for (guest, length, _), failed in zip(entries, setup.failed(), strict=True):
        first, last = (guest - GRANT_BIT) >> 12, (guest - GRANT_BIT + max(length, 1) - 1) >> 12
        if length:
            assert failed == (not (first >= 0 and last < 4))
