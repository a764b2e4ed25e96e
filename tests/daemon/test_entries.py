from __future__ import annotations

import pytest

from xenvirtio.daemon.entries import BackendEntry, EntryPath, parse_entry
from xenvirtio.errors import ConfigurationError
from xenvirtio.ids import DomId
from xenvirtio.virtio.device import DeviceType

ROOT = "/local/domain/0/backend"
DISK = EntryPath(ROOT, "virtio_disk", DomId(3), 51712)
VIRTIO = EntryPath(ROOT, "virtio", DomId(3), 0)
GOOD = {"base": "0x2000000", "irq": "33", "transport": "mmio", "type": "virtio,device2"}


def test_a_disk_entry_counts_in_decimal() -> None:
    keys = {"base": "33554944", "irq": "34", "params": "/srv/d.img", "mode": "r", "type": "standalone"}
    assert parse_entry(DISK, keys) == BackendEntry(DISK, 0x2000200, 34, DeviceType.BLOCK, "/srv/d.img", True, False)


def test_a_virtio_entry_counts_in_hex_and_names_its_type() -> None:
    assert parse_entry(VIRTIO, GOOD) == BackendEntry(VIRTIO, 0x2000000, 33, DeviceType.BLOCK, None, False, False)


@pytest.mark.parametrize(("digits", "expected"), [("1", DeviceType.NET), ("1a", DeviceType.FS)])
def test_type_numbers_are_hexadecimal(digits: str, expected: DeviceType) -> None:
    assert parse_entry(VIRTIO, {**GOOD, "type": f"virtio,device{digits}"}).device_type == expected


BAD = [
    ({"base": None}, "key 'base' is missing; let xl write it, or write base and irq by hand"),
    ({"irq": None}, "key 'irq' is missing; let xl write it, or write base and irq by hand"),
    ({"base": ""}, "base is '', not a number"),
    ({"base": "0x"}, "base is '0x', not a number"),
    ({"base": "0x1000000000000"}, "base is '0x1000000000000', out of range"),
    ({"irq": "0"}, "no MMIO window was assigned (base 0x2000000, irq 0); on Arm write transport=mmio in the guest's "
     "virtio=[...] entry; on x86 xl assigns none"),
    ({"irq": "1020"}, "irq 1020 is not a shared interrupt; allowed: 32 to 1019"),
    ({"base": "0x2000010"}, "base 0x2000010 is not a multiple of 0x200"),
    ({"params": "/a\0b"}, "params is '/a\\x00b', not a path"),
    ({"transport": "ccw"}, "transport is 'ccw'; write transport=mmio in the guest's virtio=[...] entry"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "problem"), BAD)
def test_what_is_wrong_is_said_in_one_line(change: dict[str, str | None], problem: str) -> None:
    keys = {key: value for key, value in {**GOOD, **change}.items() if value is not None}
    with pytest.raises(ConfigurationError) as error:
        parse_entry(VIRTIO, keys)
    assert str(error.value) == f"{ROOT}/virtio/3/0: {problem}"


@pytest.mark.parametrize("text", ["", "virtio,device", "virtio,device0", "virtio,devicezz", "xvirtio,device2", "block"])
def test_an_unknown_type_lists_the_known_ones(text: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        parse_entry(VIRTIO, {**GOOD, "type": text})
    expected = f"{ROOT}/virtio/3/0: unknown device type {text!r}; known: virtio,device1 (net), "
    assert str(error.value).startswith(expected)
