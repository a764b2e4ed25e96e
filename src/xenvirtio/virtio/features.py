"""Feature bits that belong to virtio itself, and what can be said about a set of them.

A feature set is an `int` of up to 128 bits; drivers and transports move it in 32-bit words. The constants are
masks, not bit numbers.

Source: VIRTIO 1.4, 2.2 (Feature Bits) and 6 (Reserved Feature Bits).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

NOTIFY_ON_EMPTY = 1 << 24  # legacy interface only
ANY_LAYOUT = 1 << 27  # legacy interface only
RING_INDIRECT_DESC = 1 << 28
RING_EVENT_IDX = 1 << 29
VERSION_1 = 1 << 32
ACCESS_PLATFORM = 1 << 33
RING_PACKED = 1 << 34
IN_ORDER = 1 << 35
ORDER_PLATFORM = 1 << 36
SR_IOV = 1 << 37
NOTIFICATION_DATA = 1 << 38
NOTIF_CONFIG_DATA = 1 << 39
RING_RESET = 1 << 40
ADMIN_VQ = 1 << 41
SUSPEND = 1 << 43

NAMES: Mapping[int, str] = {
    24: "NOTIFY_ON_EMPTY",
    27: "ANY_LAYOUT",
    28: "RING_INDIRECT_DESC",
    29: "RING_EVENT_IDX",
    32: "VERSION_1",
    33: "ACCESS_PLATFORM",
    34: "RING_PACKED",
    35: "IN_ORDER",
    36: "ORDER_PLATFORM",
    37: "SR_IOV",
    38: "NOTIFICATION_DATA",
    39: "NOTIF_CONFIG_DATA",
    40: "RING_RESET",
    41: "ADMIN_VQ",
    43: "SUSPEND",
}
"""Bit number -> name, for the bits defined here."""

WORDS = 4
"""32-bit words of a feature set: 2.2 reserves bits 128 and above."""

DEVICE_BITS = ((1 << 24) - 1) | 1 << 42 | (((1 << 128) - 1) ^ ((1 << 50) - 1))
"""Where device types have their own bits. Bit 41 counts among them in 2.2, but chapter 6 gives it to ADMIN_VQ."""


def word(features: int, index: int) -> int:
    """Bits 32 * `index` .. 32 * `index` + 31 as a 32-bit number; 0 beyond the last word."""
    return features >> 32 * index & 0xFFFFFFFF if index < WORDS else 0


def bits(features: int) -> Iterator[int]:
    """The numbers of the bits that are set, lowest first."""
    while features:
        lowest = features & -features
        yield lowest.bit_length() - 1
        features ^= lowest


def describe(features: int, device_names: Mapping[int, str] | None = None) -> str:
    """Name every bit that is set, for people: `VERSION_1, bit 61`. `device_names`: those of a device type."""
    names = {**NAMES, **(device_names or {})}
    return ", ".join(names.get(bit, f"bit {bit}") for bit in bits(features)) or "none"
