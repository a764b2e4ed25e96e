"""Each instruction the gate uses, as an assembler encodes it: known words always, GNU as where it is installed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from xenvirtio.static import a64

INSTRUCTIONS = [
    ("nop", a64.NO_OPERATION),
    ("wfi", a64.WAIT_FOR_INTERRUPT),
    ("wfe", a64.WAIT_FOR_EVENT),
    ("isb", a64.INSTRUCTION_BARRIER),
    ("dsb sy", a64.DATA_BARRIER),
    ("ic iallu", a64.FORGET_INSTRUCTIONS),
    ("eret", a64.EXCEPTION_RETURN),
    ("msr daifset, #15", a64.MASK_EXCEPTIONS),
    ("movz w14, #0x6976", a64.move_word(14, 0x74726976)[0]),
    ("movk w14, #0x7472, lsl #16", a64.move_word(14, 0x74726976)[1]),
    ("ldr w10, [x11]", a64.load_word(10, 11)),
    ("ldr w10, [x11, #8]", a64.load_word(10, 11, 8)),
    ("ldr x11, [x16], #8", a64.load_next(11, 16)),
    ("cmp w10, w13", a64.compare_words(10, 13)),
    ("add x15, x15, x14", a64.add(15, 15, 14)),
    ("add x9, x9, #4", a64.add_constant(9, 9, 4)),
    ("add w10, w10, #1", a64.add_constant_word(10, 10, 1)),
    ("lsr x14, x15, #2", a64.shift_right(14, 15, 2)),
    ("mrs x15, cntfrq_el0", a64.read_system(15, a64.CNTFRQ_EL0)),
    ("mrs x9, elr_el1", a64.read_system(9, a64.ELR_EL1)),
    ("mrs x10, cntv_ctl_el0", a64.read_system(10, a64.CNTV_CTL_EL0)),
    ("msr elr_el1, x9", a64.write_system(a64.ELR_EL1, 9)),
    ("msr vbar_el1, x10", a64.write_system(a64.VBAR_EL1, 10)),
    ("msr cntv_tval_el0, x14", a64.write_system(a64.CNTV_TVAL_EL0, 14)),
    ("msr cntv_ctl_el0, xzr", a64.write_system(a64.CNTV_CTL_EL0, a64.XZR)),
    ("msr cntp_tval_el0, x15", a64.write_system(a64.CNTP_TVAL_EL0, 15)),
    ("msr cntp_ctl_el0, x12", a64.write_system(a64.CNTP_CTL_EL0, 12)),
    ("b .+0x1000", a64.branch(0x1000)),
    ("b .-0x7000000", a64.branch(-0x7000000)),
]


def with_labels() -> tuple[str, bytes]:
    """The same branches, forward and back, in GNU as's words and in ours."""
    code = a64.Code()
    code.label("back")
    code.branch("ahead")
    code.branch_when(a64.Condition.NOT_EQUAL, "back")
    code.branch_when(a64.Condition.EQUAL, "ahead")
    code.branch_if_zero("back", 11)
    code.branch_if_zero_word("ahead", 10)
    code.branch_if_bit_clear("back", 10, 2)
    code.address_of(16, "ahead")
    code.address_of(17, "back")
    code.label("ahead")
    code.emit(a64.EXCEPTION_RETURN)
    text = (
        "back: b ahead\nb.ne back\nb.eq ahead\ncbz x11, back\ncbz w10, ahead\n"
        "tbz w10, #2, back\nadr x16, ahead\nadr x17, back\nahead: eret\n"
    )
    return text, code.bytes()


def assembled(text: str, folder: Path) -> bytes:
    (folder / "x.s").write_text(text)
    subprocess.run(["aarch64-linux-gnu-as", "-o", folder / "x.o", folder / "x.s"], check=True)
    subprocess.run(["aarch64-linux-gnu-objcopy", "-O", "binary", "-j.text", "x.o", "x.bin"], check=True, cwd=folder)
    return (folder / "x.bin").read_bytes()


@pytest.mark.skipif(not shutil.which("aarch64-linux-gnu-as"), reason="needs binutils-aarch64-linux-gnu")
def test_an_assembler_says_the_same(tmp_path: Path) -> None:
    text, labelled = with_labels()
    ours = b"".join(word.to_bytes(4, "little") for _, word in INSTRUCTIONS) + labelled
    theirs = assembled("".join(f"{line}\n" for line, _ in INSTRUCTIONS) + text, tmp_path)
    assert [ours[at : at + 4].hex() for at in range(0, len(ours), 4)] == [
        theirs[at : at + 4].hex() for at in range(0, len(theirs), 4)
    ]


def test_words_from_the_manual() -> None:
    assert a64.branch(0x40) == 0x14000010
    assert a64.branch(-4) == 0x17FFFFFF
    assert a64.load_word(0, 1, 4) == 0xB9400420
    assert a64.read_system(0, a64.CNTFRQ_EL0) == 0xD53BE000


@pytest.mark.parametrize("offset", [0, 4, -4, 0x40, (1 << 27) - 4, -(1 << 27)])
def test_a_branch_is_read_back(offset: int) -> None:
    assert a64.branch_offset(a64.branch(offset)) == offset


def test_nothing_else_is_read_as_a_branch() -> None:
    assert [a64.branch_offset(word) for text, word in INSTRUCTIONS if not text.startswith("b ")] == [None] * 27
    assert a64.branch_offset(0x94000010) is None, "bl"
