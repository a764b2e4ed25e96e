from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from xenvirtio.virtio import features


def test_every_named_bit_has_its_constant() -> None:
    for bit, name in features.NAMES.items():
        assert getattr(features, name) == 1 << bit


def test_bits_of_virtio_and_bits_of_devices_are_apart() -> None:
    assert all(not features.DEVICE_BITS >> bit & 1 for bit in features.NAMES)


@given(st.integers(0, (1 << 128) - 1))
def test_a_set_is_the_sum_of_its_words_and_of_its_bits(value: int) -> None:
    assert sum(features.word(value, index) << 32 * index for index in range(features.WORDS)) == value
    assert sum(1 << bit for bit in features.bits(value)) == value


def test_there_is_nothing_beyond_the_last_word() -> None:
    assert features.word((1 << 128) - 1, features.WORDS) == 0
    assert features.word((1 << 128) - 1, 0xFFFFFFFF) == 0


def test_unknown_bits_are_named_by_number() -> None:
    assert features.describe(features.VERSION_1 | 1 << 61 | 1 << 5, {5: "RO"}) == "RO, VERSION_1, bit 61"
    assert features.describe(0) == "none"
