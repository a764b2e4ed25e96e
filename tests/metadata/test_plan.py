from __future__ import annotations

import select

import pytest

from xenvirtio.errors import ConfigurationError
from xenvirtio.metadata.plan import PlanDirectory
from xenvirtio.static.plan import parse_plan

from .worlds import BACKEND_PLAN, FRONTEND_PLAN, ROOT


@pytest.fixture
def directory() -> PlanDirectory:
    return PlanDirectory(parse_plan(FRONTEND_PLAN), "plan.toml")


def test_both_ends_see_the_same_devices_each_with_its_own_addresses(directory: PlanDirectory) -> None:
    backend = PlanDirectory(parse_plan(BACKEND_PLAN))
    ours, theirs = directory.find(), backend.find()
    assert [(r.domid, r.name, r.type) for r in ours] == [(r.domid, r.name, r.type) for r in theirs]
    assert [r.fields["backend"] for r in theirs] == ["0", "0", "0"]
    assert ours[2].fields == ROOT
    assert ours[1].fields["argo-port"] == "0x200"
    assert ours[0].fields == {
        "transport": "msg-static",
        "backend": "0",
        "devid": "4",
        "region": "ring0",
        "region-address": "0x50000000",
        "region-size": "0x100000",
        "channel": "ring0",
        "port": "10",
        "peer-port": "11",
        "generation": "5d41402abc4b2a76",
    }
    assert (theirs[0].fields["port"], theirs[0].fields["peer-port"]) == ("11", "10")


@pytest.mark.parametrize(
    ("name", "type", "fields", "message"),
    [
        ("disk", "block", {}, r"plan\.toml: no device 'disk'; allowed: root, data, entropy0"),
        ("root", "net", {}, r"device 'root': type: found 'net'; allowed: block"),
        ("root", "block", {"base": "0x3000000"}, r"root': base: found '0x3000000'; allowed: 0x2000000"),
        ("root", "block", {"queue-0": "1"}, r"unknown field 'queue-0'; a plan has transport, backend"),
    ],
)
def test_what_contradicts_the_plan(
    directory: PlanDirectory, name: str, type: str, fields: dict[str, str], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        directory.register(name, type, fields)


def test_nothing_ever_changes(directory: PlanDirectory) -> None:
    directory.register("root", "block", {"irq": "33"})
    directory.withdraw("root")
    poll = select.poll()
    poll.register(directory.fileno(), select.POLLIN)
    assert not poll.poll(0)
    assert not directory.wait_changed(0.01)
    assert len(directory.find()) == 3
