"""`xenvirtio static build`: the folder it writes, read back by the tools that consume it, and how it fails."""

from __future__ import annotations

import hashlib
import re
import shutil
import tomllib
from itertools import pairwise
from pathlib import Path

import pytest

from tests.static.emit.example import DESCRIPTION, archive_names, kernel, ramdisk, system, write_inputs
from xenvirtio.cli.main import main
from xenvirtio.daemon.configuration import load_configuration
from xenvirtio.resources.device_tree import TreeReader
from xenvirtio.static.description_loader import load_description
from xenvirtio.static.gate import gated_windows
from xenvirtio.static.plan import load_plan
from xenvirtio.toml_table import toml_text
from xenvirtio.virtio.device import DeviceType

pytestmark = pytest.mark.skipif(not shutil.which("dtc"), reason="needs dtc (device-tree-compiler)")
pytest.importorskip("libfdt", reason="needs pylibfdt")


def build(folder: Path, *more: str, description: str = DESCRIPTION) -> int:
    """Build into folder/out; its inputs are made when they are not there."""
    path = folder / "in/system.toml"
    if not path.exists():
        path.parent.mkdir()
        write_inputs(path.parent, description)
    arguments = ["static", "build", str(path), "-o", str(folder / "out")]
    return main([*arguments, "--host-tree", str(folder / "in/host.dts"), *more])


def contents(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_every_module_lies_where_boot_toml_and_the_tree_say(tmp_path: Path) -> None:
    assert build(tmp_path) == 0
    out = tmp_path / "out"
    document = tomllib.loads((out / "boot.toml").read_text())
    tree = TreeReader((out / document["host_tree"]).read_bytes())
    assert tree.texts("/chosen", "xen,xen-bootargs") == (document["xen_arguments"],)
    in_tree = set()
    for domain, path in (("dom0", "/chosen"), *((name, f"/chosen/{name}") for name in ("front", "back", "sensor"))):
        for node in tree.children(path):
            if node.startswith("module@"):
                compatible, reg = tree.texts(f"{path}/{node}", "compatible"), tree.cells(f"{path}/{node}", "reg")
                assert compatible
                assert reg
                assert node == f"module@{reg[1]:x}"
                in_tree.add((domain, compatible[0].removeprefix("multiboot,"), reg[0] << 32 | reg[1], reg[3]))
    modules = document["module"]
    assert in_tree == {(m["domain"], m["kind"], m["address"], m["size"]) for m in modules}
    assert all((out / m["file"]).stat().st_size == m["size"] for m in modules)
    ends: dict[int, tuple[int, str]] = {}
    for module in modules:
        assert module["address"] % (2 << 20) == 0
        assert ends.setdefault(module["address"], (module["size"], module["file"])) == (module["size"], module["file"])
    spans = sorted((address, address + size) for address, (size, _) in ends.items())
    assert all(end <= start for (_, end), (start, _) in pairwise(spans))
    assert spans[0][0] == 0x49000000


def test_the_host_tree_keeps_the_machine_and_loses_the_old_chosen(tmp_path: Path) -> None:
    build(tmp_path)
    for name in ("host.dtb", "machine.dtb"):
        tree = TreeReader((tmp_path / "out" / name).read_bytes())
        assert tree.texts("/", "compatible") == ("linux,dummy-virt",)
        assert tree.cells("/memory@40000000", "reg") == (0, 0x40000000, 0, 0xC0000000)
        assert tree.texts("/chosen", "stdout-path") == ("/pl011@9000000",)
        assert not {"rng-seed", "bootargs"} & set(tree.properties("/chosen"))
        assert "module@1" not in tree.children("/chosen")


def test_the_gate_waits_for_the_devices_of_its_domain_alone(tmp_path: Path) -> None:
    build(tmp_path)
    modules = tomllib.loads((tmp_path / "out/boot.toml").read_text())["module"]
    kernels = {m["domain"]: (tmp_path / "out" / m["file"]).read_bytes() for m in modules if m["kind"] == "kernel"}
    assert gated_windows(kernels["front"]) == (0x2000000, 0x2000200)
    assert kernels["dom0"] == kernels["back"] == kernel()


def test_a_ramdisk_carries_the_plan_and_the_described_files(tmp_path: Path) -> None:
    build(tmp_path)
    out = tmp_path / "out"
    whole = (out / "modules/front-initramfs.cpio.gz").read_bytes()
    assert whole.startswith(ramdisk())
    added = (out / "front/files.cpio.gz").read_bytes()
    assert whole.endswith(added)
    assert not any(whole[len(ramdisk()) : -len(added)])
    names = archive_names(added)
    assert {"etc/xenvirtio/plan.toml", "etc/motd", "etc/udev/rules.d/60-xenvirtio.rules"} < set(names)
    for domain in ("dom0", "front", "back", "sensor"):
        assert load_plan(out / domain / "plan.toml") == system().plan_of(domain)


def test_backends_toml_is_read_by_the_daemon(tmp_path: Path) -> None:
    build(tmp_path)
    configuration = load_configuration(tmp_path / "out/backends.toml")
    (device,) = configuration.devices
    assert (device.guest, device.type, device.devid, device.serial) == ("front", DeviceType.BLOCK, 0, "it's")
    assert (device.resource.file, device.resource.read_only) == ('/srv/a "b".img', True)
    (other,) = load_configuration(tmp_path / "out/back/backends.toml").devices
    assert (other.guest, other.resource.file) == ("front", "/srv/data.img")
    assert "etc/xenvirtio/backends.toml" in archive_names((tmp_path / "out/back/files.cpio.gz").read_bytes())


def test_the_same_inputs_give_the_same_bytes(tmp_path: Path) -> None:
    build(tmp_path)
    first = contents(tmp_path / "out")
    (tmp_path / "elsewhere").mkdir()
    build(tmp_path / "elsewhere")
    assert contents(tmp_path / "elsewhere/out") == first


def test_readme_names_every_file_with_a_purpose(tmp_path: Path) -> None:
    build(tmp_path)
    lines = (tmp_path / "out/README.txt").read_text().splitlines()
    described = {line.split()[0] for line in lines if "  " in line.strip() and not line.startswith(" ")}
    assert described == contents(tmp_path / "out").keys() - {"README.txt"}


def test_a_failure_leaves_the_former_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build(tmp_path)
    before = contents(tmp_path / "out")
    (tmp_path / "in/zephyr.bin").unlink()
    assert build(tmp_path) == 2
    assert "there is no file 'zephyr.bin'" in capsys.readouterr().err
    assert contents(tmp_path / "out") == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]


def test_errors_of_check_stop_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert build(tmp_path, description=DESCRIPTION.replace("front = 12", "front = 4096")) == 1
    said = capsys.readouterr().out
    assert "error: " in said
    assert "nothing was written" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("gic", "size", "told"),
    [
        ("arm,gic-v3", "0xc0000000", []),
        (
            "arm,gic-v3",
            "0x1000000",
            ["RAM 0x40000000-0xffffffff is not all in the tree, which has 0x40000000-0x40ffffff"],
        ),
        ("arm,gic-400", "0xc0000000", ["GICv3 here and GICv2 in the tree"]),
    ],
)
def test_the_tree_of_another_machine_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], gic: str, size: str, told: list[str]
) -> None:
    assert build(tmp_path) == 0
    capsys.readouterr()
    source = tmp_path / "in/other.dts"
    text = (tmp_path / "in/host.dts").read_text().replace("0 0xc0000000>", f"0 {size}>")
    registers = f'compatible = "{gic}"; reg = <0 0x8000000 0 0x10000>, <0 0x80a0000 0 0xf60000>; interrupt-controller;'
    source.write_text(text.replace("interrupt-controller;", registers))
    assert build(tmp_path, "--host-tree", str(source)) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "other.dts: " in line and "warning" in line]
    assert [line.partition("other.dts: ")[2].partition(";")[0] for line in lines] == told


def test_modules_that_run_into_shared_memory_stop_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Known only when the files have been read."""
    description = DESCRIPTION.replace('xen = "4.22"', 'xen = "4.22"\nmodules_from = 0xbfe00000')
    assert build(tmp_path, description=description) == 1
    assert "ring0" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_not_ours_is_replaced_by_force_alone(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.txt").write_text("years")
    assert build(tmp_path) == 2
    assert contents(tmp_path / "out").keys() == {"thesis.txt"}
    assert build(tmp_path, "--force") == 0
    assert not (tmp_path / "out/thesis.txt").exists()
    assert build(tmp_path) == 0, "ours by now"


@pytest.mark.parametrize("out", ["in", "."])
def test_a_folder_with_its_inputs_is_never_replaced(tmp_path: Path, out: str) -> None:
    build(tmp_path)
    before = contents(tmp_path)
    assert build(tmp_path, "--force", "-o", str(tmp_path / out)) == 2
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda folder: (folder / "host.dts").write_text("no tree"), "not a device tree"),
        (lambda folder: (folder / "host.dts").unlink(), "No such file"),
        (lambda folder: (folder / "Image").write_bytes(b"\x1f\x8b" + bytes(99)), "gunzip"),
        (lambda folder: (folder / "initramfs.cpio.gz").write_bytes(b"ext4"), "not an initramfs"),
        (lambda folder: (folder / "motd").unlink(), "there is no file 'motd'"),
        (lambda folder: (folder / "host.dts").write_text("/dts-v1/; / { #address-cells = <3>; };"), "3 cells"),
    ],
)
def test_a_wrong_input_is_named_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], spoil: object, words: str
) -> None:
    (tmp_path / "in").mkdir()
    write_inputs(tmp_path / "in")
    assert callable(spoil)
    spoil(tmp_path / "in")
    assert build(tmp_path) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_it_builds_for_another_xen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert build(tmp_path, "--xen", "4.20") == 1, "trap_unmapped_accesses came with 4.21"
    assert "4.20" in capsys.readouterr().out
    assert build(tmp_path, "--xen", "soon") == 2


def test_no_name_of_a_file_reaches_a_shell_or_a_recipe(tmp_path: Path) -> None:
    """Every module has a plain name, whatever its file was called; equal names for different files stay apart."""
    hostile = "Im age'$(id)`x`\\;\""
    text = DESCRIPTION.replace('kernel = "zephyr.bin"', 'kernel = "deep/Image"')
    text = text.replace('ramdisk = "initramfs.cpio.gz"', f"ramdisk = {toml_text(hostile)}", 1)
    (tmp_path / "in/deep").mkdir(parents=True)
    write_inputs(tmp_path / "in", text)
    (tmp_path / "in/deep/Image").write_bytes(kernel() + b"another")
    (tmp_path / "in" / hostile).write_bytes(ramdisk())
    assert build(tmp_path) == 0
    modules = tomllib.loads((tmp_path / "out/boot.toml").read_text())["module"]
    assert all(re.fullmatch(r"modules/[A-Za-z0-9._+-]+", module["file"]) for module in modules)
    kernels = {module["domain"]: module["file"] for module in modules if module["kind"] == "kernel"}
    assert (kernels["dom0"], kernels["sensor"]) == ("modules/Image", "modules/Image-sensor")
    assert (tmp_path / "out/modules/Image-sensor").read_bytes() == kernel() + b"another"


EXAMPLES = sorted((Path(__file__).parents[2] / "examples/static").glob("*.toml"))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_is_built(tmp_path: Path, example: Path) -> None:
    (tmp_path / "in").mkdir()
    write_inputs(tmp_path / "in", example.read_text())
    for domain in load_description(example).domains:
        stand_ins = {domain.kernel: kernel(), **({domain.ramdisk: ramdisk()} if domain.ramdisk else {})}
        for name, content in (stand_ins | dict.fromkeys(domain.files.values(), b"file")).items():
            (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "in" / name).write_bytes(content)
    assert build(tmp_path) == 0
    domains = {module["domain"] for module in tomllib.loads((tmp_path / "out/boot.toml").read_text())["module"]}
    assert domains == set(load_plan(next((tmp_path / "out").glob("*/plan.toml"))).domains)


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 3
