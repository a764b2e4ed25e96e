"""The smaller files: what goes into a domain's root, backends.toml, Yocto's include, boot.toml."""

from __future__ import annotations

import gzip
import tomllib
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.static.emit.example import DESCRIPTION, archive_names, modules, ramdisk, system
from xenvirtio.daemon.configuration import SERVED_TYPES
from xenvirtio.errors import ConfigurationError
from xenvirtio.static.description import Setting
from xenvirtio.static.description_loader import parse_description
from xenvirtio.static.emit.backends import backends_file
from xenvirtio.static.emit.boot import boot_file
from xenvirtio.static.emit.linux import UDEV_RULES, archive, domain_files, extend_ramdisk, udev_rules
from xenvirtio.static.emit.yocto import include_file
from xenvirtio.static.plan import parse_plan
from xenvirtio.static.resolve import resolve
from xenvirtio.virtio.device import DeviceType


def test_a_domain_gets_its_plan_and_its_files_and_may_replace_ours() -> None:
    of = system()
    files = domain_files(of, of.description.domain("front"), {"/etc/motd": b"hello", UDEV_RULES: b"mine"}, [])
    assert parse_plan(files["/etc/xenvirtio/plan.toml"].decode()) == of.plan_of("front")
    assert (files["/etc/motd"], files[UDEV_RULES]) == (b"hello", b"mine")
    back = domain_files(of, of.description.domain("back"), {}, SERVED_TYPES.values())
    assert set(back) == {"/etc/xenvirtio/plan.toml", "/etc/xenvirtio/backends.toml"}
    (device,) = tomllib.loads(back["/etc/xenvirtio/backends.toml"].decode())["device"]
    assert (device["guest"], device["type"]) == ("front", "block")


def test_an_archive_has_the_folders_and_marks_scripts_executable() -> None:
    data = archive({"/usr/bin/x": b"#!/bin/sh\n", "/etc/y": b"y"})
    assert archive_names(data) == ["etc", "etc/y", "usr", "usr/bin", "usr/bin/x"]
    data = gzip.decompress(data)
    header = data.index(b"070701", data.index(b"usr/bin\0"))
    assert int(data[header + 14 : header + 22], 16) == 0o100755, "usr/bin/x"
    header = data.index(b"070701", data.index(b"etc\0"))
    assert int(data[header + 14 : header + 22], 16) == 0o100644, "etc/y"


def test_udev_knows_each_region_by_its_address() -> None:
    lines = udev_rules(system(), "front").splitlines()[1:]
    assert lines[0] == 'SUBSYSTEM=="uio", ATTR{maps/map0/addr}=="0x0000000050000000", SYMLINK+="xenvirtio/ring0"'
    assert len(lines) == 3


@pytest.mark.parametrize("start", [b"070701", b"\x1f\x8b\x08", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd", b"\x02\x21\x4c\x18"])
@pytest.mark.parametrize("length", range(8, 13))
def test_what_is_added_begins_at_a_word_behind_zeros(start: bytes, length: int) -> None:
    base = start.ljust(length, b"\x55")
    whole = extend_ramdisk(base, {"/x": b"1"}, "ramdisk")
    added = archive({"/x": b"1"})
    gap = whole[len(base) : -len(added)]
    assert whole == base + gap + added
    assert gap.strip(b"\0") == b""
    assert 4 <= len(gap) < 8
    assert (len(base) + len(gap)) % 4 == 0


@given(st.binary(max_size=20))
def test_no_other_file_is_taken_for_a_ramdisk(data: bytes) -> None:
    if data[:2] not in (b"07", b"\x1f\x8b", b"\xfd7", b"\x28\xb5", b"BZ", b"\x5d\0", b"\x89L", b"\x02\x21"):
        with pytest.raises(ConfigurationError, match="not an initramfs"):
            extend_ramdisk(data, {}, "x")


def test_devices_that_cannot_be_served_are_comments() -> None:
    text = backends_file(system(), "dom0", SERVED_TYPES.values())
    assert [device["type"] for device in tomllib.loads(text)["device"]] == ["block"]
    assert "# net is of a type that this version does not serve:" in text
    everything = tomllib.loads(backends_file(system(), "dom0", list(DeviceType)))["device"]
    assert [device["type"] for device in everything] == ["block", "net"], "what back serves is not dom0's"


def test_a_device_without_a_resource_is_a_comment() -> None:
    text = DESCRIPTION.replace('resource = { file = "/srv/a \\"b\\".img", read_only = true }\n', "")
    assert "# root has no resource:" in backends_file(system(text), "dom0", SERVED_TYPES.values())


_TEXTS = st.text(st.characters(exclude_categories=["Cs"]))
_SETTINGS: st.SearchStrategy[Setting] = st.one_of(_TEXTS, st.integers(-(1 << 63), (1 << 63) - 1), st.booleans())


@given(st.dictionaries(_TEXTS, _SETTINGS, min_size=1, max_size=5))
def test_any_resource_is_read_back(resource: dict[str, Setting]) -> None:
    description = parse_description(DESCRIPTION)
    device = replace(description.devices[0], resource=resource)
    of = resolve(replace(description, devices=(device,)))
    (found,) = tomllib.loads(backends_file(of, "dom0", [DeviceType.BLOCK]))["device"]
    assert found["resource"] == resource


def test_boot_toml_names_each_domains_modules() -> None:
    of = system()
    document = tomllib.loads(boot_file(modules(of), 'host "x".dtb', "console=\\x"))
    assert (document["format"], document["host_tree"], document["xen_arguments"]) == (1, 'host "x".dtb', "console=\\x")
    kernels = {m["domain"]: m["address"] for m in document["module"] if m["kind"] == "kernel"}
    assert list(kernels) == list(of.domids)
    assert kernels["dom0"] == kernels["front"] == kernels["back"] != kernels["sensor"], "one file, one address"
    assert len(ramdisk()) > 0


def test_yocto_takes_the_folder_and_every_file() -> None:
    of = system()
    text = include_file(of, modules(of), "machine.dtb")
    assert 'XENVIRTIO_DIR ?= "${DEPLOY_DIR_IMAGE}/xenvirtio"' in text
    for module in modules(of):
        assert f"    ${{XENVIRTIO_DIR}}/{module.file} \\\n" in text
    assert text.count("modules/Image ") == 1


def test_yocto_takes_the_tree_that_uboot_loads_unless_it_is_another() -> None:
    of = system()
    own = system(DESCRIPTION.replace("[[domain]]", '[imagebuilder]\ndevice_tree = "board.dtb"\n[[domain]]', 1))
    assert "    ${XENVIRTIO_DIR}/machine.dtb \\\n" in include_file(of, modules(of), "machine.dtb")
    assert "machine.dtb" not in include_file(own, modules(own), "machine.dtb")


@pytest.mark.parametrize("value", ['a"b', "a\\", "`id`", "${@os.system('id')}"])
def test_a_folder_that_would_end_its_value_is_refused(value: str) -> None:
    description = parse_description(DESCRIPTION)
    of = resolve(replace(description, yocto=replace(description.yocto, deploy_dir=value)))
    with pytest.raises(ConfigurationError, match="deploy_dir"):
        include_file(of, modules(of), "machine.dtb")
