"""Everything that a description leaves out gets its number, the same at each run."""

from __future__ import annotations

from tests.static.test_description_loader import DOM0, SYSTEM, domain
from xenvirtio.ids import DomId
from xenvirtio.static.description_loader import parse_description
from xenvirtio.static.plan import Role, encode_plan, parse_plan
from xenvirtio.static.resolve import resolve
from xenvirtio.static.system import ChannelEnd, System


def system(text: str) -> System:
    return resolve(parse_description(SYSTEM + text))


def test_domids_are_counted_from_1_with_and_without_dom0() -> None:
    assert list(system(DOM0 + domain("a") + domain("b")).domids.values()) == [0, 1, 2]
    assert list(system(domain("a") + domain("b")).domids.values()) == [1, 2]
    assert system(domain("a", "domid = 5") + domain("b")).domids == {"a": DomId(5), "b": DomId(2)}


def test_ports_are_the_lowest_free_ones_from_8_on() -> None:
    channels = '[[channel]]\nname = "x"\nends = ["a", "b"]\n[[channel]]\nname = "y"\nends = { b = 8, a = 20 }\n'
    x, y = system(domain("a") + domain("b") + channels).channels
    assert x.ends == (ChannelEnd("a", 8), ChannelEnd("b", 9))
    assert y.peer_of("a") == ChannelEnd("b", 8)


def test_addresses_of_regions_avoid_ram_and_each_other() -> None:
    regions = "".join(f'[[region]]\nid = "r{n}"\nsize = "3MiB"\nguests = ["a", "b"]\n' for n in range(2))
    found = system(domain("a") + domain("b").replace("128MiB", "512MiB") + regions).regions
    assert [region.guests for region in found] == [
        {"a": 0x5000_0000, "b": 0x6000_0000},
        {"a": 0x5040_0000, "b": 0x6040_0000},
    ]
    assert [region.host for region in found] == [None, None]


def test_a_direct_mapped_end_has_the_hosts_address_and_dom0_is_one() -> None:
    region = '[[region]]\nid = "r"\nsize = "1MiB"\nguests = ["dom0", "a"]\n'
    (found,) = system(DOM0 + domain("a") + region).regions
    assert found.host == found.guests["dom0"] == 0x1_0000_0000 - (2 << 20)
    assert found.guests["a"] == 0x5000_0000


def test_an_mmio_device_has_a_slot_and_an_interrupt_in_its_frontend() -> None:
    device = '[[device]]\nname = "{}"\ntype = "block"\nfrontend = "{}"\nbackend = "dom0"\n{}\n'
    devices = device.format("x", "a", "irq = 34") + device.format("y", "a", "") + device.format("z", "b", "")
    found = system(DOM0 + domain("a") + domain("b") + devices).devices
    assert [(d.devid, d.base, d.irq, d.grants) for d in found] == [
        (0, 0x200_0000, 34, False),
        (1, 0x200_0200, 33, False),
        (0, 0x200_0000, 33, False),
    ]


def test_a_device_over_static_memory_makes_its_own_region_and_channel() -> None:
    device = '[[device]]\nname = "d"\ntype = "block"\nfrontend = "a"\nbackend = "b"\ntransport = "msg-static"\n'
    found = system(domain("a") + domain("b") + device)
    assert found.region("d").guests == {"a": 0x5000_0000, "b": 0x5000_0000}
    assert found.region("d").where == 'device[0] "d" region'
    assert found.channel("d").peer_of("a") == ChannelEnd("b", 8)


def test_each_domain_is_told_its_own_side() -> None:
    device = '[[device]]\nname = "d"\ntype = "block"\nfrontend = "a"\nbackend = "b"\ntransport = "msg-static"\n'
    found = system(domain("a") + domain("b") + device)
    plans = [found.plan_of(name) for name in ("a", "b")]
    assert [plan.device("d").role for plan in plans] == [Role.FRONTEND, Role.BACKEND]
    assert [plan.channel("d").peer for plan in plans] == ["b", "a"]
    assert plans[0].generation == plans[1].generation
    for plan in plans:
        assert parse_plan(encode_plan(plan)) == plan


def test_the_generation_changes_with_what_the_domains_must_agree_on() -> None:
    base = domain("a") + domain("b")
    same = "# a comment\n" + base
    assert system(base).generation == system(same).generation
    region = '[[region]]\nid = "r"\nsize = "{}"\nguests = ["a", "b"]\n'
    one, other = (system(base + region.format(size)).generation for size in ("1MiB", "2MiB"))
    assert len({system(base).generation, one, other}) == 3
