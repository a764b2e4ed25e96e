"""A description's types, names and references."""

from __future__ import annotations

import pytest

from xenvirtio.errors import ConfigurationError
from xenvirtio.static.description import Enhanced, Os
from xenvirtio.static.description_loader import parse_description
from xenvirtio.static.span import Span

SYSTEM = """
[system]
name = "demo"
xen = "4.20"
platform = "qemu-virt-gicv3"
"""
DOM0 = '[dom0]\nmemory = "768MiB"\nkernel = "Image"\n'


def domain(name: str, more: str = "") -> str:
    return f'[[domain]]\nname = "{name}"\nmemory = "128MiB"\nkernel = "Image"\n{more}\n'


def test_what_is_left_out_has_a_default() -> None:
    description = parse_description(SYSTEM + DOM0 + domain("a") + domain("z", 'os = "zephyr"'))
    dom0, linux, zephyr = description.domains
    assert description.dom0 is dom0
    assert (dom0.domid, dom0.direct_map, dom0.vpl011) == (0, True, False)
    assert (linux.where, linux.vcpus, linux.enhanced, linux.vpl011) == ('domain[0] "a"', 1, Enhanced.ENABLED, True)
    assert (zephyr.os, zephyr.enhanced) == (Os.ZEPHYR, Enhanced.NO_XENSTORE)


def test_without_dom0_there_is_no_xenstore() -> None:
    description = parse_description(SYSTEM + domain("a"))
    assert description.dom0 is None
    assert description.domains[0].enhanced is Enhanced.NO_XENSTORE


def test_sizes_and_addresses_are_numbers_or_text() -> None:
    spans = 'static_memory = [{ address = 0xd0000000, size = "64MiB" }, { address = "0xe0000000", size = 0x4000000 }]'
    description = parse_description(SYSTEM + domain("a", spans))
    assert description.domains[0].static_memory == (Span(0xD0000000, 64 << 20), Span(0xE0000000, 64 << 20))


def test_a_host_of_ones_own() -> None:
    host = """
[host]
memory = [{ address = 0x0, size = "2GiB" }, { address = 0x800000000, size = "2GiB" }]
gic_version = 2
gic = [{ address = 0xf9010000, size = 0x10000 }]
uart = [{ address = 0xff000000, size = 0x1000 }]
"""
    description = parse_description(SYSTEM.replace('platform = "qemu-virt-gicv3"', "") + host + domain("a"))
    assert [span.address for span in description.host.memory] == [0, 0x8_0000_0000]
    assert description.host.uart is not None


CHANNEL = '[[channel]]\nname = "c"\nends = '
DEVICE = '[[device]]\nname = "d"\ntype = "block"\nfrontend = "a"\nbackend = "b"\n'
AB = SYSTEM + domain("a") + domain("b")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "system.toml: table 'system' is missing; it gives name, xen and platform"),
        (SYSTEM, "system.toml: no domain is described; give [dom0] or [[domain]]"),
        (
            SYSTEM.replace("4.20", "4.16") + domain("a"),
            "system.toml: system: xen: found '4.16'; allowed: a release from 4.17 on, for example \"4.20\"",
        ),
        (
            SYSTEM.replace("gicv3", "gicv5") + domain("a"),
            "system.toml: system: platform: found 'qemu-virt-gicv5'; allowed: one of qemu-virt-gicv3, qemu-virt-gicv2",
        ),
        (
            SYSTEM + domain("a").replace("128MiB", "128M"),
            'system.toml: domain[0] "a": memory: found \'128M\'; allowed: a size such as "192MiB", "64KiB" or 4096',
        ),
        (SYSTEM + domain("a") * 2, 'system.toml: domain[1] "a": is named as domain[0] "a"; give each its own name'),
        (
            SYSTEM + domain("dom0"),
            "system.toml: domain[0]: name: found 'dom0'; allowed: another name: dom0 is described by the table [dom0]",
        ),
        (AB + CHANNEL + '["a", "c"]', "system.toml: channel[0] \"c\": ends: found 'c'; allowed: a, b"),
        (AB + CHANNEL + '["a"]', "system.toml: channel[0] \"c\": ends: found ['a']; allowed: exactly two domains"),
        (
            AB + CHANNEL + "{ a = 10, b = true }",
            "system.toml: channel[0] \"c\": ends: found {'a': 10, 'b': True}; "
            "allowed: { DOMAIN = a port, ... }, or a list of domains to have them assigned",
        ),
        (
            AB + DEVICE + 'transport = "msg-static"\nbase = 0x2000000',
            'system.toml: device[0] "d": base: has no meaning with transport = "msg-static"; it belongs to "mmio"',
        ),
        (
            AB + DEVICE.replace('"b"', '"a"'),
            "system.toml: device[0] \"d\": backend: found 'a'; allowed: another domain than the frontend",
        ),
        (
            SYSTEM + domain("a", 'files = { "/etc/../x" = "x" }'),
            "system.toml: domain[0] \"a\": files: found '/etc/../x'; allowed: absolute paths of files in the domain",
        ),
    ],
)
def test_what_is_wrong_is_named_in_one_line(text: str, message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse_description(text)
    assert str(caught.value) == message
