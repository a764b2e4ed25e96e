"""What a Zephyr domain is built with: a C compiler and a C++ compiler take the header and find the plan in it."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from tests.static.emit.example import system
from xenvirtio.ids import DomId, EventPort, RemotePort, Spi
from xenvirtio.resources.device_tree import TreeReader, compile_tree
from xenvirtio.static.emit.zephyr import configuration, header, overlay
from xenvirtio.static.plan import Channel, Plan, PlannedDevice, Region, Role, Transport
from xenvirtio.virtio.device import DeviceType

PLAN = Plan(
    name="sensor",
    domid=DomId(3),
    generation="5d41",
    domains={"dom0": DomId(0), "front": DomId(1), "sensor": DomId(3)},
    regions=(Region("a.b", 0x50000000, 0x100000), Region("a-b", 0x2_0000_0000, 0x1_0000_0000)),
    channels=(Channel("samples", EventPort(10), "front", RemotePort(13)),),
    devices=(
        PlannedDevice("root", DeviceType.BLOCK, Role.FRONTEND, "dom0", 7, Transport.MMIO, 0x2000200, Spi(34), True),
        PlannedDevice(
            "data", DeviceType.NET, Role.BACKEND, "front", 1, Transport.MSG_STATIC, region="a-b", channel="samples"
        ),
        PlannedDevice("far", DeviceType.CONSOLE, Role.FRONTEND, "front", 2, Transport.MSG_ARGO, argo_port=0x76690000),
    ),
)
FLAGS = ["-Wall", "-Wextra", "-Werror", "-pedantic"]
COMPILERS = {"c": ["gcc", "-std=c11", *FLAGS], "cc": ["g++", "-std=c++17", *FLAGS]}
ASSERTIONS = """\
#include "xenvirtio.h"
#include <string.h>
#include "xenvirtio.h"
int main(void) {
    const struct xenvirtio_device *root = &xenvirtio_devices[XENVIRTIO_DEVICE_ROOT];
    const struct xenvirtio_device *data = &xenvirtio_devices[XENVIRTIO_DEVICE_DATA];
    const struct xenvirtio_device *far = &xenvirtio_devices[XENVIRTIO_DEVICE_FAR];
    if (XENVIRTIO_DOMID != 3 || XENVIRTIO_DOMID_FRONT != 1 || strcmp(XENVIRTIO_GENERATION, "5d41")) return 1;
    if (XENVIRTIO_REGIONS != 2 || XENVIRTIO_REGION_A_B != 0 || XENVIRTIO_REGION_A_B_2 != 1) return 2;
    if (xenvirtio_regions[1].address != 0x200000000 || xenvirtio_regions[1].size != 0x100000000) return 3;
    if (strcmp(xenvirtio_regions[0].id, "a.b") || xenvirtio_channels[0].port != 10) return 4;
    if (xenvirtio_channels[0].peer_domid != 1 || xenvirtio_channels[0].peer_port != 13) return 5;
    if (root->base != 0x2000200 || root->size != 0x200 || root->irq != 34 || !root->grants) return 6;
    if (root->role != XENVIRTIO_FRONTEND || root->virtio_type != 2 || root->devid != 7 || root->region != -1) return 7;
    if (data->role != XENVIRTIO_BACKEND || data->transport != XENVIRTIO_MSG_STATIC || data->peer_domid != 1) return 8;
    if (data->region != 1 || data->channel != 0 || data->size != 0) return 9;
    if (far->transport != XENVIRTIO_MSG_ARGO || far->argo_port != 0x76690000) return 10;
    return 0;
}
"""


def compile_c(suffix: str, source: str, folder: Path) -> subprocess.CompletedProcess[bytes]:
    command = COMPILERS[suffix]
    if not shutil.which(command[0]):
        pytest.skip(f"needs {command[0]}")
    (folder / f"x.{suffix}").write_text(source)
    return subprocess.run([*command, "-o", folder / "x", folder / f"x.{suffix}"], capture_output=True, check=False)


@pytest.mark.parametrize("suffix", COMPILERS)
def test_a_compiler_finds_the_plan_in_the_header(tmp_path: Path, suffix: str) -> None:
    (tmp_path / "xenvirtio.h").write_text(header(PLAN))
    done = compile_c(suffix, ASSERTIONS, tmp_path)
    assert done.returncode == 0, done.stderr.decode()
    assert subprocess.run([tmp_path / "x"], check=False).returncode == 0


@pytest.mark.parametrize("suffix", COMPILERS)
def test_a_plan_with_nothing_in_it_compiles(tmp_path: Path, suffix: str) -> None:
    (tmp_path / "xenvirtio.h").write_text(header(replace(PLAN, regions=(), channels=(), devices=())))
    done = compile_c(suffix, '#include "xenvirtio.h"\nint main(void) { return XENVIRTIO_DEVICES; }\n', tmp_path)
    assert done.returncode == 0, done.stderr.decode()
    assert subprocess.run([tmp_path / "x"], check=False).returncode == 0


@pytest.mark.parametrize("suffix", COMPILERS)
def test_no_name_becomes_code(tmp_path: Path, suffix: str) -> None:
    """Names are checked when a description is read; a plan made otherwise could hold these."""
    hostile = '"; } int evil; /* ??/ \\ \n #error x ä'
    plan = replace(PLAN, name=hostile, generation=hostile, domains={hostile: DomId(0), "dom0": DomId(0)}, devices=())
    plan = replace(plan, regions=(Region(hostile, 1, 2),), channels=())
    (tmp_path / "xenvirtio.h").write_text(header(plan))
    literal = '"' + "".join(f"\\{byte:03o}" for byte in hostile.encode()) + '"'
    source = f"""
        #include "xenvirtio.h"
        #include <string.h>
        int main(void) {{ return strcmp(XENVIRTIO_NAME, {literal}) || strcmp(xenvirtio_regions[0].id, {literal}); }}
        """
    done = compile_c(suffix, source, tmp_path)
    assert done.returncode == 0, done.stderr.decode()
    assert subprocess.run([tmp_path / "x"], check=False).returncode == 0


@pytest.mark.skipif(not shutil.which("dtc"), reason="needs dtc (device-tree-compiler)")
def test_the_overlay_lands_in_a_boards_tree() -> None:
    """In Zephyr's cells: type, number, flags (edge is 4) and priority."""
    pytest.importorskip("libfdt", reason="needs pylibfdt")
    board = "/dts-v1/;\n/ { #address-cells = <2>; #size-cells = <2>; gic: gic { #interrupt-cells = <4>; }; };\n"
    tree = TreeReader(compile_tree(board + overlay(system(), "front"), "board"))
    assert tree.texts("/virtio@2000200", "compatible") == ("virtio,mmio",)
    assert tree.cells("/virtio@2000200", "reg") == (0, 0x2000200, 0, 0x200)
    assert tree.cells("/virtio@2000200", "interrupts") == (0, 34 - 32, 4, 0xA0)
    assert tree.cells("/virtio@2000200", "interrupt-parent") == tree.cells("/gic", "phandle")
    sensor = TreeReader(compile_tree(board + overlay(system(), "sensor"), "board"))
    assert sensor.cells("/memory@52000000", "reg") == (0, 0x52000000, 0, 2 << 20)
    assert sensor.texts("/memory@52000000", "compatible") == ("mmio-sram",)


def test_a_domain_with_nothing_has_an_overlay_that_says_so() -> None:
    assert overlay(system(), "nobody").startswith("/*")


def test_the_configuration_asks_for_what_is_used() -> None:
    assert configuration(system(), "sensor") == "CONFIG_XEN=y\nCONFIG_XEN_DOM0LESS=y\n"
    assert configuration(system(), "front") == "CONFIG_XEN=y\nCONFIG_VIRTIO=y\n"
