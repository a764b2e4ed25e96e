"""The gate around a kernel: what it leaves alone, where it leads, what it waits for, what it refuses.

An arm64 CPU (unicorn, which is QEMU's) runs it. That it sleeps in Xen and wakes is shown by the lab scenario `gate`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xenvirtio.errors import ConfigurationError
from xenvirtio.static.a64 import branch
from xenvirtio.static.gate import PAGE_BYTES, TIMER_EXPIRED_BIT, WINDOWS_MAX, gated_windows, wrap

MAGIC = 0x74726976
MZ = 0x91005A4D
"""add x13, x18, #0x16: what an EFI kernel starts with."""
NOP = 0xD503201F
LOADED = 0x40000000
KERNEL_REGISTERS = (0x48000000, 0, 0, 0)
WFI, WFE = bytes.fromhex("7f2003d5"), bytes.fromhex("5f2003d5")
WINDOW, OTHER_WINDOW = 0x2000000, 0x2001200


def kernel(
    code0: int = branch(0x400), code1: int = 0, *, size: int = 0x9000, text_offset: int = 0, length: int = 0x8123
) -> bytes:
    header = struct.pack("<IIQQQQQQ4sI", code0, code1, text_offset, size, 0xA, 1, 2, 3, b"ARM\x64", 0x40)
    return header.ljust(length, b"\xa5")


def test_the_kernel_stays_where_it_was_but_for_its_first_instruction_and_its_size() -> None:
    original = kernel()
    wrapped = wrap(original, [WINDOW])
    assert wrapped[4:16] == original[4:16]
    assert wrapped[24 : len(original)] == original[24:]
    assert not any(wrapped[len(original) : 0x9000]), "the kernel's .bss"
    assert len(wrapped) == 0x9000 + PAGE_BYTES
    assert struct.unpack_from("<QQ", wrapped, 8) == (0, 0x9000 + PAGE_BYTES)


@pytest.mark.parametrize("length", [0x8123, 0x9000, 0x9001, 0xA000])
def test_the_gate_is_behind_both_the_file_and_the_kernels_memory(length: int) -> None:
    assert len(wrap(kernel(length=length), [WINDOW])) == max(0x9000, (length + 0xFFF) & ~0xFFF) + PAGE_BYTES


@pytest.mark.parametrize("sleeps", [True, False])
@pytest.mark.parametrize(
    ("code0", "code1", "entry"),
    [(branch(0x400), 0, 0x400), (MZ, branch(0x404), 0x408), (NOP, branch(0x404), 0x408)],
)
def test_an_open_gate_leads_where_the_kernel_began(code0: int, code1: int, entry: int, sleeps: bool) -> None:
    cpu = run(wrap(kernel(code0, code1), [WINDOW], sleeps=sleeps), lambda address, looks: 2)
    assert cpu.entered == entry
    assert cpu.waits == 0
    assert cpu.first_registers == KERNEL_REGISTERS
    assert cpu.timers == (0, 0)


@pytest.mark.parametrize(
    "before",
    [None, {0: 0, 8: 0}, {0: 0xFFFFFFFF, 8: 0xFFFFFFFF}, {0: MAGIC, 8: 0}, {0: MAGIC, 8: 0xFFFFFFFF},
     {0: MAGIC, 8: None}, {0: MAGIC + 1, 8: 2}],
    ids=["abort", "zeros", "ones", "empty slot", "gone after the magic, ones", "gone after the magic, abort", "other"],
)  # fmt: skip
def test_it_waits_while_there_is_no_device(before: dict[int, int | None] | None) -> None:
    def answer(address: int, waits: int) -> int | None:
        if waits >= 3:
            return {0: MAGIC, 8: 2}[address - WINDOW]
        return None if before is None else before[address - WINDOW]

    cpu = run(wrap(kernel(), [WINDOW]), answer, whole=True)
    assert (cpu.entered, cpu.waits) == (0x400, 3)
    assert cpu.first_registers == KERNEL_REGISTERS
    assert cpu.timers == (0, 0), "off again before the kernel starts"


def test_it_waits_until_all_are_there_at_once() -> None:
    """The first goes again while the second comes."""
    there = [{WINDOW}, {WINDOW}, {OTHER_WINDOW}, {OTHER_WINDOW}, {WINDOW, OTHER_WINDOW}]

    def answer(address: int, waits: int) -> int | None:
        return 2 if address & ~0x1FF in there[waits] else None

    cpu = run(wrap(kernel(), [WINDOW, OTHER_WINDOW]), answer)
    assert (cpu.entered, cpu.waits) == (0x400, 4)


def test_without_sleeping_it_yields_until_the_timer_says_so() -> None:
    cpu = run(wrap(kernel(), [WINDOW], sleeps=False), lambda address, waits: 2 if waits >= 2 else None)
    assert cpu.entered == 0x400
    assert cpu.waits == 2


@given(st.lists(st.integers(1, (1 << 48) - 1), min_size=1, max_size=WINDOWS_MAX))
def test_its_windows_are_read_back(windows: list[int]) -> None:
    assert gated_windows(wrap(kernel(), windows)) == tuple(windows)


@given(st.binary(max_size=200))
def test_any_other_file_is_refused_and_has_no_gate(data: bytes) -> None:
    assert gated_windows(data) == ()
    with pytest.raises(ConfigurationError):
        wrap(data, [WINDOW])


@given(st.binary(min_size=64, max_size=64), st.integers(0, 0x3000))
def test_any_header_gives_a_whole_image_or_an_error(header: bytes, length: int) -> None:
    data = (header[:0x38] + b"ARM\x64" + header[0x3C:]).ljust(length, b"\0")
    try:
        wrapped = wrap(data, [WINDOW])
    except ConfigurationError:
        return
    assert gated_windows(wrapped) == (WINDOW,)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\x1f\x8b" + bytes(100), "gunzip"),
        (b"MZ\0\0zimg" + bytes(100), "EFI_ZBOOT"),
        (b"\x7fELF" + bytes(100), "ELF"),
        (bytes(0x24) + b"\x18\x28\x6f\x01" + bytes(100), "32-bit"),
        (b"hello", "not an arm64 Image"),
        (bytes(100), "not an arm64 Image"),
        (kernel(size=0), "no image size"),
        (kernel(text_offset=0x234), "text_offset 0x234"),
        (kernel(code0=NOP), "starts with the instructions 0xd503201f 0x00000000"),
        (kernel(code0=MZ), "starts with the instructions 0x91005a4d"),
        (kernel(code0=0xD503207F, code1=branch(0x404)), "starts with the instructions 0xd503207f"),
        (kernel(code0=branch(-8)), "outside the image"),
        (kernel(code0=branch(0x9000)), "outside the image"),
        (kernel(code0=branch(0)), "outside the image"),
        (kernel(size=1 << 27), "allowed: below"),
        (wrap(kernel(), [WINDOW]), "has a gate already"),
    ],
)
def test_what_cannot_be_gated_is_refused_in_one_line(data: bytes, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words) as refused:
        wrap(data, [WINDOW], "Image-a")
    assert str(refused.value).startswith("Image-a: ")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("windows", [[], [WINDOW] * (WINDOWS_MAX + 1)])
def test_the_number_of_windows_is_bounded(windows: Sequence[int]) -> None:
    with pytest.raises(ConfigurationError, match="windows"):
        wrap(kernel(), windows)


class Run:
    """What was seen when an image ran from its first byte into the kernel."""

    entered = -1
    waits = 0
    first_registers: tuple[int, ...] = ()
    timers: tuple[int, int] = (-1, -1)


def run(image: bytes, answer: Callable[[int, int], int | None], *, whole: bool = False) -> Run:
    """Run it. `answer(address, waits)` is the device id there after that many waits, or None for a data abort.

    With `whole` it is asked for each register by its address; without, MagicValue is right wherever there is a device.
    """
    unicorn = pytest.importorskip("unicorn")
    from unicorn import arm64_const as names

    seen = Run()
    cpu = unicorn.Uc(unicorn.UC_ARCH_ARM64, unicorn.UC_MODE_ARM)
    size = (len(image) + 0xFFF) & ~0xFFF
    cpu.mem_map(LOADED, size)
    cpu.mem_write(LOADED, image)
    for number, value in enumerate(KERNEL_REGISTERS):
        cpu.reg_write(names.UC_ARM64_REG_X0 + number, value)
    gate = LOADED + size - PAGE_BYTES

    def step(_cpu: object, address: int, _size: int, _data: object) -> None:
        if seen.entered < 0 and address < gate and address != LOADED:
            seen.entered = address - LOADED
            cpu.emu_stop()
        elif cpu.mem_read(address, 4) in (WFI, WFE):
            # The emulator has no time of its own: a period has passed, and the timer says so to who asks it next.
            seen.waits += 1
            if cpu.mem_read(address, 4) == WFE:
                cpu.reg_write(names.UC_ARM64_REG_X10, 1 << TIMER_EXPIRED_BIT)
                address += 4
            cpu.reg_write(names.UC_ARM64_REG_PC, address + 4)

    cpu.hook_add(unicorn.UC_HOOK_CODE, step)
    at = LOADED
    for _ in range(1000):
        try:
            cpu.emu_start(at, LOADED + size, count=5000)
        except unicorn.UcError as error:
            if error.errno != unicorn.UC_ERR_READ_UNMAPPED:
                raise
            # A load from nowhere: answer it, or abort it as Xen does.
            at = cpu.reg_read(names.UC_ARM64_REG_PC)
            load = int.from_bytes(cpu.mem_read(at, 4), "little")
            address = cpu.reg_read(names.UC_ARM64_REG_X0 + (load >> 5 & 31)) + (load >> 10 & 0xFFF) * 4
            answered = answer(address, seen.waits)
            if answered is None:
                write_system(cpu, names, (0, 4, 0, 1), at)
                write_system(cpu, names, (0, 4, 0, 0), 0x3C5)
                at = read_system(cpu, names, (0, 12, 0, 0)) + 0x200
            else:
                word = MAGIC if not whole and address & 0x1FF == 0 else answered
                cpu.reg_write(names.UC_ARM64_REG_X0 + (load & 31), word)
                at += 4
            continue
        break
    seen.first_registers = tuple(cpu.reg_read(names.UC_ARM64_REG_X0 + number) for number in range(4))
    virtual, physical = (read_system(cpu, names, name) for name in ((3, 14, 3, 1), (3, 14, 2, 1)))
    seen.timers = (virtual & 1, physical & 1)
    return seen


def read_system(cpu: object, names: object, register: tuple[int, int, int, int]) -> int:
    op1, crn, crm, op2 = register
    return int(cpu.reg_read(names.UC_ARM64_REG_CP_REG, (crn, crm, 3, op1, op2)))  # type: ignore[attr-defined]


def write_system(cpu: object, names: object, register: tuple[int, int, int, int], value: int) -> None:
    op1, crn, crm, op2 = register
    cpu.reg_write(names.UC_ARM64_REG_CP_REG, (crn, crm, 3, op1, op2, value))  # type: ignore[attr-defined]
