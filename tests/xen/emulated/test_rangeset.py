from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from xenvirtio.xen.emulated.rangeset import RangeSet

NUMBERS = st.integers(0, 40)
RANGES = st.tuples(NUMBERS, NUMBERS).map(lambda pair: (min(pair), max(pair)))


@given(st.lists(st.tuples(st.booleans(), RANGES)), RANGES)
def test_it_is_a_set_of_integers(steps: list[tuple[bool, tuple[int, int]]], asked: tuple[int, int]) -> None:
    ranges, model = RangeSet(), set[int]()
    for is_add, (start, end) in steps:
        if is_add:
            ranges.add(start, end)
            model |= set(range(start, end + 1))
        else:
            ranges.remove(start, end)
            model -= set(range(start, end + 1))
    wanted = set(range(asked[0], asked[1] + 1))
    assert {n for start, end in ranges for n in range(start, end + 1)} == model
    assert ranges.contains(*asked) == (wanted <= model)
    assert ranges.overlaps(*asked) == bool(wanted & model)
    assert len(ranges) == sum(n - 1 not in model for n in model)
