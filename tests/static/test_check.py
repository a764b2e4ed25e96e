"""Rules of `check` that no single broken description shows, and that good systems pass all of them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.static.broken import GOOD
from tests.static.test_description_loader import DOM0, SYSTEM, domain
from xenvirtio.static.check import Finding, Severity, check
from xenvirtio.static.description_loader import load_description, parse_description
from xenvirtio.static.host_map import place_modules
from xenvirtio.static.resolve import resolve
from xenvirtio.static.span import Span

EXAMPLES = sorted((Path(__file__).parents[2] / "examples" / "static").glob("*.toml"))
DEVICE = '[[device]]\nname = "{}"\ntype = "block"\nfrontend = "a"\nbackend = "b"\ntransport = "msg-static"\n{}\n'


def findings(text: str, severity: Severity = Severity.ERROR) -> list[Finding]:
    return [finding for finding in check(resolve(parse_description(text))) if finding.severity is severity]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_the_examples_are_free_of_errors_and_warnings(path: Path) -> None:
    found = check(resolve(load_description(path)))
    assert [str(finding) for finding in found if finding.severity is not Severity.NOTE] == []


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 3


def test_every_finding_names_two_places_in_one_line() -> None:
    text = GOOD.replace("0xb0000000", "0x1").replace("a = 10", "a = 0").replace('"128MiB"', '"1GiB"')
    found = check(resolve(parse_description(text)))
    assert len(found) > 5
    for finding in found:
        assert finding.place
        assert finding.other
        assert finding.place != finding.other
        assert re.fullmatch(r"[ -~]+", str(finding))


def test_errors_come_first() -> None:
    found = check(resolve(parse_description(GOOD.replace("gate = true\n", "").replace("a = 10", "a = 0"))))
    assert [finding.severity for finding in found] == sorted(
        (finding.severity for finding in found), key=list(Severity).index
    )


def test_a_direct_mapped_domain_has_the_hosts_windows_and_not_the_guests() -> None:
    """0x0302_0000 is the GIC of an ordinary domain, 0x0800_0000 that of the host."""
    device = '[[device]]\nname = "d"\ntype = "block"\nfrontend = "a"\nbackend = "dom0"\nbase = {}\n'
    direct = 'direct_map = true\nstatic_memory = [{ address = 0xc0000000, size = "128MiB" }]\n'
    clashes = {}
    for kind, more in (("ordinary", ""), ("direct", direct)):
        for base in ("0x03020000", "0x08000000"):
            text = SYSTEM + DOM0 + domain("a", more) + device.format(base)
            clashes[kind, base] = [finding.rule for finding in findings(text)]
    assert clashes == {
        ("ordinary", "0x03020000"): ["guest-overlap"],
        ("ordinary", "0x08000000"): [],
        ("direct", "0x03020000"): [],
        ("direct", "0x08000000"): ["guest-overlap"],
    }


def test_an_interrupt_assigned_in_a_direct_mapped_domain_is_not_the_hosts_uart() -> None:
    device = '[[device]]\nname = "d"\ntype = "block"\nfrontend = "a"\nbackend = "dom0"\n'
    direct = 'direct_map = true\nstatic_memory = [{ address = 0xc0000000, size = "128MiB" }]\n'
    text = SYSTEM + DOM0 + domain("a", direct) + device
    assert resolve(parse_description(text)).devices[0].irq == 34
    assert findings(text) == []
    assert [finding.rule for finding in findings(text + "irq = 33")] == ["irq-twice"]


def test_modules_that_reach_into_static_memory_are_found() -> None:
    static = 'static_memory = [{ address = 0x4a000000, size = "128MiB" }]\n'
    system = resolve(parse_description(SYSTEM + domain("a", static)))
    assert check(system) == []
    small = place_modules(system.description, {"Image": 8 << 20})
    assert small == {"Image": Span(0x4900_0000, 8 << 20)}
    assert check(system, small) == []
    (found,) = check(system, place_modules(system.description, {"Image": 40 << 20}))
    assert (found.place, found.other) == ('domain[0] "a" static_memory[0]', "module Image")


def test_modules_are_counted_with_xen_and_the_tree_and_shared_ones_once() -> None:
    def small(name: str) -> str:
        return domain(name, 'ramdisk = "r"').replace("128MiB", "16MiB")

    text = SYSTEM + "".join(small(f"d{n}") for n in range(29))
    assert findings(text) == []
    more = text + small("last")
    assert [finding.rule for finding in findings(more)] == ["modules-number"]


def test_more_regions_than_xen_takes() -> None:
    region = '[[region]]\nid = "r{}"\nsize = "4KiB"\nguests = ["a", "b"]\n'
    text = SYSTEM + domain("a") + domain("b") + "".join(region.format(number) for number in range(33))
    (found,) = findings(text)
    assert (found.rule, found.place) == ("regions-number", 'region[32] "r32"')


def test_static_memory_across_the_banks_panics_before_4_22() -> None:
    spans = 'static_memory = [{ address = 0x100000000, size = "4GiB" }]\n'
    big = domain("a", spans).replace("128MiB", "4GiB")
    system = SYSTEM.replace('"qemu-virt-gicv3"', '"qemu-virt-gicv3"\nhost_memory = "16GiB"')
    assert [finding.rule for finding in findings(system + big)] == ["xen-version"]
    assert findings((system + big).replace("4.20", "4.22")) == []


def test_a_device_may_be_touched_early_where_xen_answers_with_ones() -> None:
    device = '[[device]]\nname = "d"\ntype = "block"\nfrontend = "a"\nbackend = "dom0"\nresource = { file = "/d" }\n'
    rules = {}
    for more in ("", "gate = true", "trap_unmapped_accesses = false"):
        text = SYSTEM.replace("4.20", "4.21") + DOM0 + domain("a", more) + device
        rules[more] = [finding.rule for finding in findings(text, Severity.WARNING)]
    assert rules == {"": ["mmio-early"], "gate = true": [], "trap_unmapped_accesses = false": []}


def test_a_domain_with_the_control_capability_may_serve() -> None:
    device = '[[device]]\nname = "d"\ntype = "block"\nfrontend = "a"\nbackend = "b"\n'
    text = SYSTEM.replace("4.20", "4.21") + domain("a") + domain("b", "{}") + device
    assert [finding.rule for finding in findings(text.format(""))] == ["mmio-backend"]
    assert findings(text.format('capabilities = ["control"]')) == []


def test_a_domain_that_serves_xenstore_takes_the_place_of_dom0() -> None:
    text = SYSTEM.replace("4.20", "4.21") + domain("a", 'enhanced = "enabled"') + domain("b", "{}")
    assert [finding.rule for finding in findings(text.format(""))] == ["xenstore-absent"]
    assert findings(text.format('capabilities = ["xenstore"]')) == []
    assert [finding.rule for finding in findings(DOM0 + text.format('capabilities = ["xenstore"]'))] == ["capabilities"]


def test_two_devices_may_share_a_bus_whole_but_not_a_part_of_it() -> None:
    both = SYSTEM + domain("a") + domain("b") + DEVICE.format("x", "") + DEVICE.format("y", "{}")
    assert findings(both.format("")) == []
    assert findings(both.format('region = "x"\nchannel = "x"')) == []
    assert [finding.rule for finding in findings(both.format('region = "x"'))] == ["bus"]


def test_several_vcpus_are_a_matter_of_who_introduces_the_domain() -> None:
    text = SYSTEM + DOM0 + domain("a", "vcpus = 2")
    assert findings(text) == []
    assert [finding.rule for finding in findings(text, Severity.NOTE)] == ["vcpus-xenstore"]


def test_zephyr_is_told_what_it_cannot_do() -> None:
    text = SYSTEM + DOM0 + domain("z", 'os = "zephyr"\nenhanced = "enabled"')
    assert [finding.rule for finding in findings(text, Severity.WARNING)] == ["zephyr"]
    assert findings(text.replace("enabled", "no-xenstore"), Severity.WARNING) == []
