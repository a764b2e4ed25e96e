"""The gate: makes an arm64 kernel wait for its virtio-mmio devices before its first instruction.

A dom0less domain starts with Xen, its backend seconds later in the user space of another domain. Until the backend
has claimed the device's register window, Xen answers an access with a data abort, from which Linux's virtio-mmio driver
does not recover: the kernel panics. (With `trap-unmapped-accesses = <0>`, Xen 4.21 and later, the driver reads all ones
and gives the device up.) The gate is a page of code behind the kernel, entered in its place:

    kernel image   | code0: b gate   |  ...  as it was  ...  | zeros for .bss | gate: code, windows, vectors |
                   ^ loaded where the kernel wants to be                      ^ image_size, rounded up to 4 KiB

It reads MagicValue and DeviceID of every window, with vectors of its own that step over an abort. Once all are there at
the same time (magic right, a device id that is neither 0, an empty slot, nor all ones) it goes on to where code0 and
code1 led. In between it sleeps: WFI blocks the vCPU in Xen, and the virtual timer wakes it. The physical timer is set
to a later time as well, because a vCPU that Xen takes off its CPU between arming the timer and WFI for longer than a
period loses that wake-up: the interrupt is not enabled in the GIC, so WFI does not see that it is pending. Waking by an
interrupt that is not enabled is what Xen's ordinary virtual GIC does (vgic_inject_irq always kicks the vCPU);
CONFIG_NEW_VGIC, an experiment in Xen, does not, and there the gate must be told to yield instead.

Nothing but x9-x16, the vector base and two timers is used; x0-x3 reach the kernel as Xen set them. MMU and caches are
off.

Source: Linux Documentation/arch/arm64/booting.rst (Image header); xen/arch/arm/{traps,vtimer,vgic}.c.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from xenvirtio.errors import ConfigurationError
from xenvirtio.static import a64
from xenvirtio.virtio.transports.mmio_layout import MAGIC, Register

PAGE_BYTES = 4096
VECTORS_OFFSET = 2048
"""VBAR_EL1 is a multiple of 2 KiB; the vectors are the second half of the page."""
WINDOWS_OFFSET = 1024
WINDOWS_MAX = (VECTORS_OFFSET - WINDOWS_OFFSET) // 8 - 1
MARK_OFFSET = 16
TIMER_EXPIRED_BIT = 2
"""ISTATUS of CNTV_CTL_EL0."""
MARK = b"xenvirtio gate 1"

_HEADER = struct.Struct("<IIQQQQQQ4sI")
"""code0, code1, text_offset, image_size, flags, three reserved, magic, offset of the PE header."""
_MZ = int.from_bytes(b"MZ", "little")
_IMAGE_MAGIC = b"ARM\x64"
_OTHER_FILES = (
    (0, b"\x1f\x8b", "compressed with gzip", "unpack it: gunzip -k FILE"),
    (0, b"\x28\xb5\x2f\xfd", "compressed with zstd", "unpack it: unzstd FILE"),
    (0, b"\xfd7zXZ\0", "compressed with xz", "unpack it: unxz -k FILE"),
    (0, b"\x04\x22\x4d\x18", "compressed with lz4", "unpack it: unlz4 FILE"),
    (4, b"zimg", "a compressed EFI kernel (CONFIG_EFI_ZBOOT)", "take arch/arm64/boot/Image of the same build"),
    (0, b"\x7fELF", "an ELF file", "take the raw image: arch/arm64/boot/Image, or zephyr.bin"),
    (0, b"\x27\x05\x19\x56", "a U-Boot image", "take the Image it was made from"),
    (0x24, b"\x18\x28\x6f\x01", "a 32-bit zImage", "the gate is for arm64"),
)

_FAULT, _VALUE, _WINDOW, _ONE, _MAGIC_REGISTER, _PERIOD, _RECOVERY, _NEXT = range(9, 17)


@dataclass(frozen=True, slots=True)
class _Image:
    """What the gate needs of an arm64 Image's header: its two instructions, and how many bytes the kernel takes.

    The flags (byte order, page size, where it may lie) stay as they are: the kernel stays where it was.
    """

    code: tuple[int, int]
    size: int


def wrap(kernel: bytes, windows: Sequence[int], name: str = "kernel", *, sleeps: bool = True) -> bytes:
    """Return the kernel with a gate that waits for the virtio-mmio windows at these guest-physical addresses.

    Without `sleeps` it yields its CPU between two looks instead of sleeping, for a Xen with CONFIG_NEW_VGIC.

    Raises:
        ConfigurationError: not an arm64 Image, compressed, gated already, or one the gate cannot be put behind.
    """
    if not 1 <= len(windows) <= WINDOWS_MAX:
        raise ConfigurationError(name, f"a gate for {len(windows)} windows", f"allowed: 1 to {WINDOWS_MAX}")
    image = _parse(kernel, name)
    if gated_windows(kernel):
        raise ConfigurationError(name, "has a gate already", "give the kernel as it was built")
    gate_offset = -(-max(image.size, len(kernel)) // PAGE_BYTES) * PAGE_BYTES
    if gate_offset >= a64.BRANCH_REACH_BYTES - PAGE_BYTES:
        raise ConfigurationError(name, f"{gate_offset} bytes large", f"allowed: below {a64.BRANCH_REACH_BYTES}")
    page = _gate_page(_entry(image, name) - gate_offset, windows, sleeps)
    result = bytearray(kernel.ljust(gate_offset, b"\0") + page)
    struct.pack_into("<I", result, 0, a64.branch(gate_offset))
    struct.pack_into("<Q", result, 16, gate_offset + PAGE_BYTES)
    return bytes(result)


def gated_windows(image: bytes) -> tuple[int, ...]:
    """The windows that a wrapped kernel waits for; none when it has no gate."""
    if len(image) < _HEADER.size:
        return ()
    gate_offset = a64.branch_offset(int.from_bytes(image[:4], "little"))
    if gate_offset is None or gate_offset < 0 or len(image) < gate_offset + PAGE_BYTES:
        return ()
    page = image[gate_offset : gate_offset + PAGE_BYTES]
    if page[MARK_OFFSET : MARK_OFFSET + len(MARK)] != MARK:
        return ()
    windows = struct.unpack_from(f"<{WINDOWS_MAX}Q", page, WINDOWS_OFFSET)
    return windows[: windows.index(0)] if 0 in windows else windows


def _parse(kernel: bytes, name: str) -> _Image:
    for offset, magic, what, remedy in _OTHER_FILES:
        if kernel[offset : offset + len(magic)] == magic:
            raise ConfigurationError(name, f"{what}; a gate needs an arm64 Image", remedy)
    if len(kernel) < _HEADER.size or kernel[0x38:0x3C] != _IMAGE_MAGIC:
        raise ConfigurationError(name, "not an arm64 Image (no magic at byte 56)", "take arch/arm64/boot/Image")
    code0, code1, text_offset, size, *_ = _HEADER.unpack_from(kernel)
    if size == 0:
        raise ConfigurationError(name, "its header gives no image size", "a kernel from Linux 3.17 on does")
    if text_offset % PAGE_BYTES:
        raise ConfigurationError(name, f"text_offset {text_offset:#x}", f"allowed: multiples of {PAGE_BYTES:#x}")
    return _Image((code0, code1), size)


def _entry(image: _Image, name: str) -> int:
    """Where the two instructions in front of the header lead, in bytes from the start of the image."""
    for number, instruction in enumerate(image.code):
        offset = a64.branch_offset(instruction)
        if offset is not None:
            entry = number * 4 + offset
            if not _HEADER.size <= entry < image.size:
                raise ConfigurationError(name, f"its entry {entry:#x} is outside the image", "is the file damaged?")
            return entry
        # An EFI kernel starts with "MZ", as an instruction without effect, another Linux with a nop.
        if number == 0 and instruction != a64.NO_OPERATION and instruction & 0xFFFF != _MZ:
            break
    problem = f"starts with the instructions {image.code[0]:#010x} {image.code[1]:#010x}"
    raise ConfigurationError(name, problem, "allowed: a branch, or a nop or MZ and a branch")


def _gate_page(entry: int, windows: Sequence[int], sleeps: bool) -> bytes:
    """The gate's page; `entry` is the kernel's, relative to the page."""
    code = a64.Code()
    code.branch("start")
    code.fill_to(MARK_OFFSET + len(MARK))
    code.label("start")
    code.emit(a64.MASK_EXCEPTIONS)
    code.address_of(_VALUE, "vectors")
    code.emit(a64.write_system(a64.VBAR_EL1, _VALUE), a64.INSTRUCTION_BARRIER)
    code.emit(*a64.move_word(_ONE, 1), *a64.move_word(_MAGIC_REGISTER, MAGIC))
    code.emit(a64.read_system(_RECOVERY, a64.CNTFRQ_EL0), a64.shift_right(_PERIOD, _RECOVERY, 2))
    code.emit(a64.add(_RECOVERY, _RECOVERY, _RECOVERY))

    code.label("look at all")
    code.address_of(_NEXT, "windows")
    code.label("look at next")
    code.emit(a64.load_next(_WINDOW, _NEXT))
    code.branch_if_zero("open", _WINDOW)
    code.emit(a64.load_word(_VALUE, _WINDOW, Register.MAGIC_VALUE), a64.compare_words(_VALUE, _MAGIC_REGISTER))
    code.branch_when(a64.Condition.NOT_EQUAL, "wait")
    code.emit(a64.load_word(_VALUE, _WINDOW, Register.DEVICE_ID))
    code.branch_if_zero_word("wait", _VALUE)
    code.emit(a64.add_constant_word(_VALUE, _VALUE, 1))
    code.branch_if_zero_word("wait", _VALUE)
    code.branch("look at next")

    code.label("wait")
    _emit_wait(code, sleeps)
    code.branch("look at all")

    code.label("open")
    code.emit(a64.write_system(a64.CNTV_CTL_EL0, a64.XZR), a64.write_system(a64.CNTP_CTL_EL0, a64.XZR))
    code.emit(a64.FORGET_INSTRUCTIONS, a64.DATA_BARRIER, a64.INSTRUCTION_BARRIER)
    code.emit(a64.branch(entry - len(code)))

    # A read that aborted leaves 0 in its target and is not repeated.
    code.label("fault")
    code.emit(a64.read_system(_FAULT, a64.ELR_EL1), a64.add_constant(_FAULT, _FAULT, 4))
    code.emit(a64.write_system(a64.ELR_EL1, _FAULT), *a64.move_word(_VALUE, 0), a64.EXCEPTION_RETURN)

    assert len(code) <= WINDOWS_OFFSET
    code.fill_to(WINDOWS_OFFSET)
    code.label("windows")
    code.fill_to(VECTORS_OFFSET)
    code.label("vectors")
    for number in range(16):
        code.fill_to(VECTORS_OFFSET + number * 128)
        code.branch("fault")
    page = bytearray(code.bytes().ljust(PAGE_BYTES, b"\0"))
    page[MARK_OFFSET : MARK_OFFSET + len(MARK)] = MARK
    struct.pack_into(f"<{len(windows)}Q", page, WINDOWS_OFFSET, *windows)
    return bytes(page)


def _emit_wait(code: a64.Code, sleeps: bool) -> None:
    """A quarter of a second: asleep, or (without `sleeps`) with the timer's status polled and the CPU yielded."""
    code.emit(a64.write_system(a64.CNTV_TVAL_EL0, _PERIOD), a64.write_system(a64.CNTV_CTL_EL0, _ONE))
    if sleeps:
        # Two seconds: within 31 bits of the fastest counter that the architecture has, 1 GHz.
        code.emit(a64.write_system(a64.CNTP_TVAL_EL0, _RECOVERY), a64.write_system(a64.CNTP_CTL_EL0, _ONE))
        code.emit(a64.INSTRUCTION_BARRIER, a64.WAIT_FOR_INTERRUPT)
        return
    code.label("yield")
    code.emit(a64.WAIT_FOR_EVENT, a64.read_system(_VALUE, a64.CNTV_CTL_EL0))
    code.branch_if_bit_clear("yield", _VALUE, TIMER_EXPIRED_BIT)
