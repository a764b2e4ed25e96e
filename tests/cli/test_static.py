"""`xenvirtio static check` and `show` as a user runs them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.static.broken import GOOD
from xenvirtio.cli.main import main

EXAMPLE = Path(__file__).parents[2] / "examples" / "static" / "lab.toml"


@pytest.fixture
def write(tmp_path: Path) -> Path:
    path = tmp_path / "system.toml"
    path.write_text(GOOD)
    return path


def test_a_good_description_exits_0(write: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["static", "check", str(write), "--strict"]) == 0
    out = capsys.readouterr().out
    assert out == (
        "good: 3 domains, 2 shared regions, 2 event channels, 2 devices, for Xen 4.20: nothing found wrong\n"
    )


def test_errors_exit_1_each_on_a_line_with_its_file(write: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write.write_text(GOOD.replace("a = 10", "a = 1024"))
    assert main(["static", "check", str(write)]) == 1
    first, last = capsys.readouterr().out.splitlines()
    assert first.startswith(f'error: {write}: channel[0] "c0" ends.a and ')
    assert last.endswith("1 error")


def test_warnings_exit_1_only_when_asked(write: Path) -> None:
    write.write_text(GOOD.replace("gate = true\n", ""))
    assert main(["static", "check", str(write)]) == 0
    assert main(["static", "check", str(write), "--strict"]) == 1


def test_what_is_no_description_exits_2(write: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write.write_text(GOOD.replace("memory", "remembers"))
    assert main(["static", "check", str(write)]) == 2
    assert main(["static", "check", str(write.with_name("absent.toml"))]) == 2
    assert main(["static", "show", str(write)]) == 2
    assert "key 'memory' is missing" in capsys.readouterr().err


def test_json_has_the_parts(write: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write.write_text(GOOD.replace("a = 10", "a = 1"))
    assert main(["static", "check", "--format", "json", str(write)]) == 1
    document = json.loads(capsys.readouterr().out)
    assert document["ok"] is False
    (found,) = document["findings"]
    assert (found["severity"], found["rule"]) == ("error", "port-xenstore")
    assert (found["place"], found["other"]) == ('channel[0] "c0" ends.a', 'domain[0] "a" enhanced')


def test_files_beside_the_description_count_with_their_sizes(write: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("Image", "dom0.cpio.gz", "domu.cpio.gz"):
        (write.parent / name).touch()
    assert main(["static", "check", str(write)]) == 0
    with (write.parent / "Image").open("wb") as image:
        image.truncate(2 << 30)
    assert main(["static", "check", str(write)]) == 1
    assert "module Image" in capsys.readouterr().out


def test_show_prints_a_drawing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["static", "show", str(EXAMPLE)]) == 0
    assert "two ◀━━━━ dom0" in capsys.readouterr().out


def test_show_writes_a_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["static", "show", str(EXAMPLE), "--svg", str(tmp_path / "map.svg")]) == 0
    assert (tmp_path / "map.svg").read_text().startswith("<svg")
    assert capsys.readouterr().out == ""
    assert main(["static", "show", str(EXAMPLE), "--svg", str(tmp_path / "absent" / "map.svg")]) == 1


TREE = """\
/dts-v1/;
/ {
    #address-cells = <1>; #size-cells = <1>;
    chosen { stdout-path = "/serial@9000000"; };
    memory@40000000 { device_type = "memory"; reg = <0x40000000 0x10000000>; };
    serial@9000000 { reg = <0x9000000 0x1000>; interrupts = <0 1 4>; };
    gic@8000000 { compatible = "arm,gic-400"; reg = <0x8000000 0x1000 0x8001000 0x2000>; };
};
"""


def test_a_host_is_read_from_its_tree(write: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("libfdt")
    if shutil.which("dtc") is None:
        pytest.skip("no dtc")
    write.write_text(GOOD.replace('platform = "qemu-virt-gicv3"', 'host_tree = "board.dts"'))
    assert main(["static", "check", str(write)]) == 2
    assert "there is no such host_tree" in capsys.readouterr().err
    board = write.with_name("board.dts")
    board.write_text(TREE)
    assert main(["static", "check", str(write)]) == 1
    out = capsys.readouterr().out
    assert f"all memory and {board}" in out, "256 MiB are too little"
    assert f'region[0] "r0" host and {board}' in out
    board.write_text(TREE.replace("0x10000000>", "0x80000000>"))
    assert main(["static", "check", str(write)]) == 0
    assert main(["static", "show", str(write)]) == 0
