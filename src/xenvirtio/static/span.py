"""Ranges of addresses: what a memory map is made of."""

from __future__ import annotations

from dataclasses import dataclass

from xenvirtio.ids import PAGE_SIZE


@dataclass(frozen=True, slots=True, order=True)
class Span:
    """`size_bytes` from `address` on."""

    address: int
    size_bytes: int

    @property
    def end(self) -> int:
        """First address behind it."""
        return self.address + self.size_bytes

    @property
    def is_page_aligned(self) -> bool:
        return self.address % PAGE_SIZE == 0 and self.size_bytes % PAGE_SIZE == 0

    def overlaps(self, other: Span) -> bool:
        return self.address < other.end and other.address < self.end

    def contains(self, other: Span) -> bool:
        return self.address <= other.address and other.end <= self.end

    def __str__(self) -> str:
        return f"{self.address:#010x}-{max(self.end - 1, self.address):#010x}"


def size_text(size_bytes: int) -> str:
    """The largest unit that gives a whole number: 192MiB, 4KiB, 100B."""
    for unit, name in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if size_bytes and size_bytes % unit == 0:
            return f"{size_bytes // unit}{name}"
    return f"{size_bytes}B"


def round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
