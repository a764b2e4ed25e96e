"""Encodes the few arm64 instructions that the gate is made of, with labels.

    code = Code()
    code.label("again")
    code.emit(load_word(10, 11))
    code.branch_if_zero("again", 10)
    code.bytes()

Registers are numbers, 31 is the zero register. Source: Arm Architecture Reference Manual (DDI 0487), C6.2.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import NamedTuple

XZR = 31
BRANCH_REACH_BYTES = 1 << 27
"""`b` reaches this far back, and one instruction less forward."""

NO_OPERATION = 0xD503201F
WAIT_FOR_INTERRUPT = 0xD503207F
WAIT_FOR_EVENT = 0xD503205F
INSTRUCTION_BARRIER = 0xD5033FDF
DATA_BARRIER = 0xD5033F9F
FORGET_INSTRUCTIONS = 0xD508751F
"""ic iallu."""
EXCEPTION_RETURN = 0xD69F03E0
MASK_EXCEPTIONS = 0xD5034FDF
"""msr daifset, #15."""


class SystemRegister(NamedTuple):
    """Name of a system register as the instruction has it."""

    op1: int
    crn: int
    crm: int
    op2: int

    @property
    def bits(self) -> int:
        """With op0 = 3, as all that we use have."""
        return 1 << 19 | self.op1 << 16 | self.crn << 12 | self.crm << 8 | self.op2 << 5


VBAR_EL1 = SystemRegister(0, 12, 0, 0)
ELR_EL1 = SystemRegister(0, 4, 0, 1)
CNTFRQ_EL0 = SystemRegister(3, 14, 0, 0)
CNTP_TVAL_EL0 = SystemRegister(3, 14, 2, 0)
CNTP_CTL_EL0 = SystemRegister(3, 14, 2, 1)
CNTV_TVAL_EL0 = SystemRegister(3, 14, 3, 0)
CNTV_CTL_EL0 = SystemRegister(3, 14, 3, 1)


class Condition(IntEnum):
    """Of `b.cond`."""

    EQUAL = 0
    NOT_EQUAL = 1


def move_word(target: int, value: int) -> list[int]:
    """Put a 32-bit constant into a register: movz, movk."""
    return [0x52800000 | (value & 0xFFFF) << 5 | target, 0x72A00000 | (value >> 16) << 5 | target]


def load_word(target: int, address: int, offset_bytes: int = 0) -> int:
    """ldr wT, [xA, #offset]; the offset is a multiple of 4 below 16 KiB."""
    return 0xB9400000 | offset_bytes // 4 << 10 | address << 5 | target


def load_next(target: int, address: int) -> int:
    """ldr xT, [xA], #8: the address moves on."""
    return 0xF8408400 | address << 5 | target


def compare_words(left: int, right: int) -> int:
    return 0x6B00001F | right << 16 | left << 5


def add(target: int, left: int, right: int) -> int:
    return 0x8B000000 | right << 16 | left << 5 | target


def add_constant(target: int, source: int, value: int) -> int:
    """add xT, xS, #value, with a value below 4096."""
    return 0x91000000 | value << 10 | source << 5 | target


def add_constant_word(target: int, source: int, value: int) -> int:
    """The same in 32 bits."""
    return 0x11000000 | value << 10 | source << 5 | target


def shift_right(target: int, source: int, bits: int) -> int:
    return 0xD340FC00 | bits << 16 | source << 5 | target


def read_system(target: int, register: SystemRegister) -> int:
    return 0xD5300000 | register.bits | target


def write_system(register: SystemRegister, source: int) -> int:
    return 0xD5100000 | register.bits | source


def branch(offset_bytes: int) -> int:
    """b: relative to the instruction itself."""
    return 0x14000000 | offset_bytes // 4 & 0x3FFFFFF


def branch_offset(instruction: int) -> int | None:
    """How many bytes away a `b` leads; None for any other instruction."""
    if instruction >> 26 != 0b000101:
        return None
    words = instruction & 0x3FFFFFF
    return (words - (1 << 26) if words >> 25 else words) * 4


def _field19(offset_bytes: int) -> int:
    return (offset_bytes // 4 & 0x7FFFF) << 5


class Code:
    """Instructions one after the other; a label may be used before it is placed."""

    def __init__(self) -> None:
        self._words: list[int] = []
        self._labels: dict[str, int] = {}
        self._fixups: list[tuple[int, str, Callable[[int], int]]] = []

    def __len__(self) -> int:
        """In bytes."""
        return len(self._words) * 4

    def emit(self, *instructions: int) -> None:
        self._words += instructions

    def label(self, name: str) -> None:
        """The place of the next instruction."""
        self._labels[name] = len(self)

    def fill_to(self, offset_bytes: int) -> None:
        """Go on at that offset; zeros (an undefined instruction) in between."""
        self._words += [0] * (offset_bytes // 4 - len(self._words))

    def branch(self, label: str) -> None:
        self._with_label(label, branch)

    def branch_when(self, condition: Condition, label: str) -> None:
        self._with_label(label, lambda offset: 0x54000000 | _field19(offset) | condition)

    def branch_if_zero(self, label: str, register: int) -> None:
        """cbz xR."""
        self._with_label(label, lambda offset: 0xB4000000 | _field19(offset) | register)

    def branch_if_zero_word(self, label: str, register: int) -> None:
        """cbz wR."""
        self._with_label(label, lambda offset: 0x34000000 | _field19(offset) | register)

    def branch_if_bit_clear(self, label: str, register: int, bit: int) -> None:
        """tbz wR, #bit, for bits 0 to 31; within 32 KiB."""
        self._with_label(label, lambda offset: 0x36000000 | bit << 19 | (offset // 4 & 0x3FFF) << 5 | register)

    def address_of(self, target: int, label: str) -> None:
        """adr xT, label: within 1 MiB."""
        self._with_label(
            label, lambda offset: 0x10000000 | (offset & 3) << 29 | (offset >> 2 & 0x7FFFF) << 5 | target
        )

    def bytes(self) -> bytes:
        """The code, all labels resolved."""
        words = list(self._words)
        for index, label, encode in self._fixups:
            words[index] = encode(self._labels[label] - index * 4)
        return b"".join(word.to_bytes(4, "little") for word in words)

    def _with_label(self, label: str, encode: Callable[[int], int]) -> None:
        self._fixups.append((len(self._words), label, encode))
        self._words.append(0)
