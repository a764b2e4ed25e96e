"""imagebuilder.cfg as bash sources it, in an empty environment; the extra commands as U-Boot's fdt would do them."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.static.emit.example import DESCRIPTION, modules, system
from xenvirtio.static.description_loader import parse_description
from xenvirtio.static.emit.imagebuilder import configuration, extra_commands, variables
from xenvirtio.static.emit.modules import ModuleKind, modules_of
from xenvirtio.static.emit.shell import bash_quoted
from xenvirtio.static.resolve import resolve
from xenvirtio.static.system import System

needs_bash = pytest.mark.skipif(not shutil.which("bash"), reason="needs bash")
HOSTILE = "'; touch pwned; echo '\" $(touch pwned) `touch pwned` ${HOME} \\ ! * ~ #"

KNOWN_KEYS = """
MEMORY_START MEMORY_END LOAD_CMD BOOT_CMD DEVICE_TREE XEN XEN_CMD XEN_STATIC_HEAP UBOOT_SOURCE UBOOT_SCRIPT
APPEND_EXTRA_CMDS NUM_DOMUS DOM0_KERNEL DOM0_RAMDISK DOM0_CMD DOM0_MEM DOM0_VCPUS DOMU_KERNEL DOMU_RAMDISK DOMU_CMD
DOMU_MEM DOMU_VCPUS DOMU_PASSTHROUGH_DTB DOMU_STATIC_MEM DOMU_DIRECT_MAP DOMU_ENHANCED DOMU_CAPS DOMU_VPL011
DOMU_NR_SPIS DOMU_GRANT_FRAMES DOMU_TRAP_UNMAP
"""
"""From ImageBuilder's README."""


def sourced(text: str, folder: Path) -> Mapping[str, str]:
    """All variables that sourcing it sets, arrays by element."""
    (folder / "x.cfg").write_text(text)
    subprocess.run(["bash", "-n", folder / "x.cfg"], check=True)
    script = """
        . ./x.cfg || exit 9
        for name in $(compgen -v); do
            [[ $name =~ ^(MEMORY_|LOAD_|BOOT_|DEVICE_|XEN|UBOOT_|APPEND_|NUM_|DOM0_|DOMU_) ]] || continue
            declare -n value=$name
            if [[ $(declare -p $name) == "declare -a"* ]]; then
                for i in "${!value[@]}"; do printf '%s[%s]=%s\\0' $name $i "${value[$i]}"; done
            else
                printf '%s=%s\\0' $name "$value"
            fi
        done"""
    done = subprocess.run(
        ["env", "-i", shutil.which("bash") or "bash", "--norc", "--noprofile", "-c", script],
        cwd=folder,
        capture_output=True,
        check=True,
        timeout=60,
    )
    assert done.stderr == b""
    pairs = [item.partition("=") for item in done.stdout.decode().split("\0")[:-1]]
    return {name: value for name, _, value in pairs}


@needs_bash
def test_bash_reads_what_the_system_says(tmp_path: Path) -> None:
    of = system()
    found = sourced(configuration(of, modules(of), "machine.dtb"), tmp_path)
    assert found == variables(of, modules(of), "machine.dtb")
    assert {name.partition("[")[0] for name in found} <= set(KNOWN_KEYS.split())
    guests = [domain for domain in of.domains if not domain.is_dom0]
    assert found["NUM_DOMUS"] == str(len(guests))
    assert found["DOM0_CMD"] == "root=/dev/vda say=\"it's $HOME `id` \\ ;#\""
    assert found["XEN_STATIC_HEAP"] == "0xe0000000 0x4000000"
    for number, domain in enumerate(guests):
        mine = modules_of(modules(of), domain.name)
        assert found[f"DOMU_KERNEL[{number}]"] == mine[ModuleKind.KERNEL].file
        assert found[f"DOMU_MEM[{number}]"] == str(domain.memory_bytes >> 20)
        assert found[f"DOMU_VCPUS[{number}]"] == str(domain.vcpus)
        assert (f"DOMU_RAMDISK[{number}]" in found) == (domain.ramdisk is not None)
    assert [found.get(f"DOMU_ENHANCED[{number}]") for number in range(3)] == ["1", "2", "2"]
    assert found["DOMU_PASSTHROUGH_DTB[0]"] == "modules/front-passthrough.dtb"
    assert (found["DOMU_STATIC_MEM[1]"], found["DOMU_DIRECT_MAP[1]"]) == ("0xd0000000 0x8000000", "1")
    assert (found["DOMU_NR_SPIS[0]"], found["DOMU_GRANT_FRAMES[0]"], found["DOMU_TRAP_UNMAP[0]"]) == ("64", "16", "0")


@needs_bash
def test_nothing_in_the_description_is_run(tmp_path: Path) -> None:
    description = parse_description(DESCRIPTION)
    settings_of = replace(description.imagebuilder, load_command=HOSTILE, device_tree=HOSTILE, uboot_script=HOSTILE)
    domains = tuple(replace(domain, arguments=HOSTILE) for domain in description.domains)
    of = resolve(
        replace(description, imagebuilder=settings_of, domains=domains, xen_image=HOSTILE, xen_arguments=HOSTILE)
    )
    found = sourced(configuration(of, modules(of), HOSTILE), tmp_path)
    assert found["LOAD_CMD"] == found["XEN"] == found["DOM0_CMD"] == found["DOMU_CMD[1]"] == HOSTILE
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.cfg"]


@needs_bash
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])), max_size=20))
def test_any_text_is_one_word(tmp_path: Path, values: list[str]) -> None:
    text = "".join(f"DOMU_CMD[{number}]={bash_quoted(value)}\n" for number, value in enumerate(values))
    assert sourced(text, tmp_path) == {f"DOMU_CMD[{number}]": value for number, value in enumerate(values)}


Tree = dict[str, dict[str, str]]


def applied(commands: str) -> Tree:
    """What the commands leave of a tree that has all domains and no more: path -> properties."""
    tree: Tree = {"/chosen": {}, **{f"/chosen/domU{number}": {} for number in range(3)}}
    for line in commands.splitlines():
        made = re.fullmatch(r"fdt mknod (\S+) ([a-z0-9-]+)", line)
        was_set = re.fullmatch(r'fdt set (\S+) (\S+) (<[0-9a-fx ]+>|"[A-Za-z0-9,._-]+")', line)
        assert made or was_set, f"U-Boot would not take {line!r}"
        if made:
            assert made[1] in tree
            assert f"{made[1]}/{made[2]}" not in tree
            tree[f"{made[1]}/{made[2]}"] = {}
        elif was_set:
            tree[was_set[1]][was_set[2]] = was_set[3]
    return tree


def numbers(text: str) -> list[int]:
    return [int(number, 16) for number in text.strip("<>").split()]


def test_the_extra_commands_make_all_regions_and_channels() -> None:
    of = system()
    tree = applied(extra_commands(of, modules(of)))
    folders = {name: f"/chosen/domU{number}" for number, name in enumerate(n for n in of.domids if n != "dom0")}
    folders["dom0"] = "/chosen"
    for region in of.regions:
        for domain, address in region.guests.items():
            node = tree.pop(f"{folders[domain]}/shared-memory-{address:x}")
            wide = numbers(node["xen,shared-mem"])
            host = [] if region.host is None else [region.host]
            assert [high << 32 | low for high, low in zip(wide[::2], wide[1::2], strict=True)] == [
                *host, address, region.size_bytes,
            ]  # fmt: skip
            assert node["xen,shm-id"] == f'"{region.id}"'
            assert ("role" in node) == (region.owner is not None)
    phandles: list[int] = []
    for channel in of.channels:
        paths = [f"{folders[end.domain]}/event-channel-{end.port}" for end in channel.ends]
        for end, path, peer in zip(channel.ends, paths, paths[::-1], strict=True):
            (phandle,) = numbers(tree[peer]["phandle"])
            assert numbers(tree[path]["xen,evtchn"]) == [end.port, phandle]
            phandles.append(phandle)
        for path in paths:
            del tree[path]
    assert len(set(phandles)) == len(phandles)
    assert all(0xFFFF_0000 < phandle < 0xFFFF_FFFE for phandle in phandles)
    assert set(tree) == {"/chosen", "/chosen/domU0", "/chosen/domU1", "/chosen/domU2"}
    assert not any(tree.values())


def test_what_has_no_exact_key_is_set_by_command() -> None:
    def of(enhanced: str, memory: str) -> System:
        text = DESCRIPTION.replace('memory = "192MiB"', f'memory = "{memory}"\nenhanced = "{enhanced}"')
        return system(text)

    changed = of("legacy", "196612KiB")
    tree = applied(extra_commands(changed, modules(changed)))
    assert tree["/chosen/domU0"] == {"memory": "<0x0 0x30004>", "xen,enhanced": '"legacy"'}
    plain = of("enabled", "192MiB")
    assert applied(extra_commands(plain, modules(plain)))["/chosen/domU0"] == {}
