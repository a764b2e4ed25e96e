"""Any TOML ends in a description or a ConfigurationError; any description in findings and pictures, in bounded time."""

from __future__ import annotations

import json
import re
import time
from typing import Any
from xml.etree import ElementTree

from hypothesis import given, settings
from hypothesis import strategies as st

from xenvirtio.errors import ConfigurationError
from xenvirtio.static.check import check
from xenvirtio.static.description import Description
from xenvirtio.static.description_loader import TABLES_MAX, parse_description
from xenvirtio.static.plan import encode_plan
from xenvirtio.static.resolve import resolve
from xenvirtio.static.show_svg import as_svg
from xenvirtio.static.show_text import as_text

NAMES = ["dom0", "a", "b", "z"]
addresses = st.one_of(
    st.integers(0, 0x1_0000_0000).map(lambda number: number & ~0xFFF),
    st.sampled_from([0x200_0000, 0x302_0000, 0x3800_0000, 0x4000_0000, 0xB000_0000, (1 << 48) - 1]),
    st.integers(-1, 1 << 49),
)
sizes = st.one_of(st.sampled_from(["1MiB", "64KiB", "128MiB", "3GiB", 0, 1, 4096, "0x1000"]), st.integers(-1, 1 << 49))
spans = st.lists(st.fixed_dictionaries({"address": addresses, "size": sizes}), max_size=3)
names = st.sampled_from(NAMES)
ports = st.one_of(st.integers(-1, 1025), st.sampled_from([1, 8, 10]))


def table(needed: dict[str, st.SearchStrategy[Any]], **optional: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.fixed_dictionaries(needed, optional=optional)


systems = table(
    {
        "name": st.just("s"),
        "xen": st.sampled_from(["4.17", "4.19.2", "4.20", "4.21", "4.22"]),
        "platform": st.sampled_from(["qemu-virt-gicv3", "qemu-virt-gicv2"]),
    },
    host_memory=sizes,
    static_heap=spans,
    modules_from=addresses,
    xen_arguments=st.sampled_from(["argo", "dom0_mem=1G"]),
)
domains = table(
    {"memory": sizes, "kernel": st.just("k")},
    vcpus=st.integers(0, 129),
    enhanced=st.sampled_from(["enabled", "no-xenstore", "legacy", "disabled"]),
    os=st.sampled_from(["linux", "zephyr"]),
    direct_map=st.booleans(),
    static_memory=spans,
    gate=st.booleans(),
    view=st.sampled_from(["uio", "devmem"]),
    ramdisk=st.just("r"),
    domid=st.integers(0, 4),
    capabilities=st.lists(st.sampled_from(["control", "hardware", "xenstore"]), max_size=3),
    trap_unmapped_accesses=st.booleans(),
    vpl011=st.booleans(),
    spis=st.integers(0, 20),
    files=st.just({"/f": "f"}),
)
regions = table(
    {"size": sizes, "guests": st.one_of(st.dictionaries(names, addresses), st.lists(names, max_size=4))},
    host=addresses,
    owner=names,
)
channels = table({"ends": st.one_of(st.dictionaries(names, ports, max_size=3), st.lists(names, max_size=3))})
devices = table(
    {"type": st.sampled_from(["block", "net"]), "frontend": names, "backend": names},
    transport=st.sampled_from(["mmio", "msg-static", "msg-argo"]),
    base=addresses,
    irq=st.integers(31, 40),
    devid=st.integers(0, 2),
    grants=st.booleans(),
    region=st.sampled_from(["0", "1", "new"]),
    channel=st.sampled_from(["0", "1", "new"]),
    argo_port=st.integers(0, 3),
    resource=st.dictionaries(st.sampled_from(["file"]), st.text(max_size=5)),
)


def numbered(tables: st.SearchStrategy[Any], key: str) -> st.SearchStrategy[list[dict[str, Any]]]:
    return st.lists(tables, max_size=4).map(lambda items: [{key: str(n), **item} for n, item in enumerate(items)])


documents = table(
    {
        "system": systems,
        "domain": st.lists(domains, min_size=1, max_size=3).map(
            lambda items: [{"name": name, **item} for name, item in zip(NAMES[1:], items, strict=False)]
        ),
    },
    dom0=table({"memory": sizes, "kernel": st.just("k")}, vcpus=st.integers(1, 4)),
    region=numbered(regions, "id"),
    channel=numbered(channels, "name"),
    device=numbered(devices, "name"),
)
scalars = st.one_of(st.booleans(), st.integers(), st.text(max_size=20), sizes, names)
keys = st.one_of(
    st.sampled_from(
        [
            "system",
            "host",
            "dom0",
            "domain",
            "region",
            "channel",
            "device",
            "name",
            "id",
            "guests",
            "ends",
            "xen",
            "platform",
            "memory",
            "kernel",
            "size",
            "imagebuilder",
            "yocto",
            "files",
            "resource",
        ]
    ),
    st.text(max_size=10),
)
anything = st.dictionaries(
    keys, st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner), max_leaves=20)
)


def encode(value: Any) -> str:
    """TOML of a document: inline tables and lists; JSON's texts are TOML's, but for DEL."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{encode(key)} = {encode(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(encode(item) for item in value) + "]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def check_error(error: ConfigurationError, source: str) -> None:
    assert "\n" not in str(error)
    assert str(error).startswith(f"{source}: ")


def try_whole(text: str) -> Description | None:
    try:
        description = parse_description(text, "s.toml")
    except ConfigurationError as error:
        check_error(error, "s.toml")
        return None
    system = resolve(description)
    for finding in check(system):
        assert re.fullmatch(r"[ -~]+", str(finding))
        assert finding.place != finding.other
    for domain in system.domains:
        encode_plan(system.plan_of(domain.name))
    as_text(system, 100)
    ElementTree.fromstring(as_svg(system))
    return description


@given(st.one_of(anything, documents))
def test_any_document_is_a_description_or_one_error(document: dict[str, Any]) -> None:
    try_whole("\n".join(f"{encode(key)} = {encode(value)}" for key, value in document.items()))


@given(st.text(max_size=200))
def test_any_text_is_a_description_or_one_error(text: str) -> None:
    try_whole(text)


@settings(max_examples=1, deadline=None)
@given(st.just(0))
def test_the_largest_description_is_checked_in_bounded_time(unused: int) -> None:
    """Everything overlaps everything, in as many tables as are allowed."""
    most = [f"d{number}" for number in range(TABLES_MAX["domain"])]
    document = {
        "system": {"name": "s", "xen": "4.20", "platform": "qemu-virt-gicv3"},
        "domain": [{"name": name, "memory": "1GiB", "kernel": "k"} for name in most],
        "region": [{"id": f"r{n}", "size": "1GiB", "guests": most} for n in range(TABLES_MAX["region"])],
        "channel": [{"name": f"c{n}", "ends": most[:2]} for n in range(TABLES_MAX["channel"])],
        "device": [
            {"name": f"v{n}", "type": "block", "frontend": most[0], "backend": most[1], "transport": "msg-static"}
            for n in range(TABLES_MAX["device"])
        ],
    }
    before = time.monotonic()
    assert try_whole("\n".join(f"{key} = {encode(value)}" for key, value in document.items())) is not None
    assert time.monotonic() - before < 60
