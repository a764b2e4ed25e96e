from __future__ import annotations

from pathlib import Path

import pytest

from xenvirtio.errors import ConfigurationError
from xenvirtio.lab.built_system import read_built_system
from xenvirtio.lab.options import Images, MachineOptions
from xenvirtio.lab.qemu import qemu_command

GOOD = """
format = 1
host_tree = "host.dtb"
xen_arguments = "console=dtuart"

[[module]]
domain = "a"
kind = "kernel"
file = "Image"
address = 0x4a000000
size = 5

[[module]]
domain = "b"
kind = "kernel"
file = "Image"
address = 0x4a000000
size = 5
"""


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "host.dtb").write_bytes(b"tree")
    (tmp_path / "Image").write_bytes(b"12345")
    (tmp_path / "other").write_bytes(b"54321")
    return tmp_path


def test_a_file_that_two_domains_share_is_loaded_once(out: Path) -> None:
    (out / "boot.toml").write_text(GOOD)
    system = read_built_system(out)
    assert not system.has_dom0()
    images = Images(*[out / "x"] * 5)
    command = qemu_command(images, out, MachineOptions(system=system))
    assert [word for word in command if word.startswith("loader,")] == [
        f"loader,file={out}/Image,addr=0x4a000000,force-raw=on"
    ]
    assert command[command.index("-dtb") + 1] == f"{out}/host.dtb"
    assert "-append" not in command
    assert not any("guest-loader" in word for word in command)


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("format = 1", "format = 2", "format: found 2"),
        ("size = 5", "size = 6", "has 5 bytes, the tree says 6"),
        ('file = "Image"', 'file = "gone"', "there is no file .*gone"),
        ('"kernel"', '"initrd"', "kind: found 'initrd'"),
        ('host_tree = "host.dtb"', 'host_tree = "no.dtb"', "host_tree: there is no file"),
        ('domain = "a"', 'domain = "a"\ncolour = 1', "unknown key 'colour'"),
    ],
)
def test_what_does_not_fit_is_named(out: Path, old: str, new: str, named: str) -> None:
    (out / "boot.toml").write_text(GOOD.replace(old, new, 1))
    with pytest.raises(ConfigurationError, match=named):
        read_built_system(out)


def test_two_files_at_one_address_are_refused(out: Path) -> None:
    head, _, tail = GOOD.rpartition('"Image"')
    (out / "boot.toml").write_text(f'{head}"other"{tail}')
    with pytest.raises(ConfigurationError, match=r"address 0x4a000000: both .*Image and .*other"):
        read_built_system(out)
