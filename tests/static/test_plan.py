"""The plan of one VM: written and read back, and every wrong one refused in one line."""

from __future__ import annotations

import pytest

from xenvirtio.errors import ConfigurationError
from xenvirtio.ids import DomId, EventPort, RemotePort, Spi
from xenvirtio.static.plan import Channel, Plan, PlannedDevice, Region, Role, Transport, encode_plan, parse_plan
from xenvirtio.virtio.device import DeviceType

PLAN = Plan(
    name="a",
    domid=DomId(1),
    generation="5d41",
    domains={"dom0": DomId(0), "a": DomId(1), 'od"d': DomId(2)},
    regions=(Region("ring0", 0x50000000, 0x100000),),
    channels=(Channel("ring0", EventPort(10), 'od"d', RemotePort(11)),),
    devices=(
        PlannedDevice("root", DeviceType.BLOCK, Role.FRONTEND, "dom0", 0, Transport.MMIO, 0x2000000, Spi(33), True),
        PlannedDevice(
            "data", DeviceType.BLOCK, Role.BACKEND, 'od"d', 1, Transport.MSG_STATIC, region="ring0", channel="ring0"
        ),
        PlannedDevice("more", DeviceType.NET, Role.BACKEND, "dom0", 0, Transport.MSG_ARGO, argo_port=0x123),
    ),
)


def test_a_plan_comes_back_as_it_was_written() -> None:
    assert parse_plan(encode_plan(PLAN)) == PLAN


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("format = 1", "format = 2", "format: found 2"),
        ("domid = 1", "domid = 2", "domid: found 2"),
        ('peer = "dom0"', 'peer = "dom9"', "found 'dom9'"),
        ("irq = 33", "irq = 12", "irq: found 12"),
        ('region = "ring0"', 'region = "ring1"', "region: found 'ring1'"),
        ("port = 10", "port = 4096", "port: found 4096"),
        ("grants = true", "grant = true", "'grants' is missing"),
        ("base = 0x2000000", 'base = 0x2000000\nregion = "ring0"', "unknown key 'region'"),
        ("[domains]", "[domain]", "'domains' is missing"),
        ("format = 1", "format = ", "not TOML"),
    ],
)
def test_what_is_wrong_is_named(old: str, new: str, words: str) -> None:
    text = encode_plan(PLAN)
    assert old in text
    with pytest.raises(ConfigurationError, match=words.replace("[", r"\[")) as refused:
        parse_plan(text.replace(old, new, 1))
    assert "\n" not in str(refused.value)
