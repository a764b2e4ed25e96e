"""What a plan may ask of `xenvirtio msg`, and the one-line errors."""

from __future__ import annotations

from pathlib import Path

import pytest

from xenvirtio.cli.main import main
from xenvirtio.daemon.msg_plan import find_bus, message_buses
from xenvirtio.daemon.msg_serve import choose_devices
from xenvirtio.errors import ConfigurationError
from xenvirtio.static.plan import Plan, Role, parse_plan

HEAD = """
format = 1
name = "server"
domid = 2
generation = "g"
[domains]
user = 1
server = 2
third = 3
[[region]]
id = "shm"
address = 0x8000000
size = 0x100000
[[region]]
id = "small"
address = 0x9000000
size = 0x8000
[[channel]]
name = "bus"
port = 11
peer = "user"
peer_port = 10
[[channel]]
name = "other"
port = 12
peer = "third"
peer_port = 10
"""


def device(
    name: str, devid: int = 0, *, region: str = "shm", channel: str = "bus", peer: str = "user", kind: str = "block"
) -> str:
    return f"""
[[device]]
name = "{name}"
type = "{kind}"
role = "backend"
peer = "{peer}"
devid = {devid}
transport = "msg-static"
region = "{region}"
channel = "{channel}"
"""


def plan_of(*devices: str) -> Plan:
    return parse_plan(HEAD + "".join(devices))


def test_devices_on_one_region_and_channel_share_a_bus() -> None:
    plan = plan_of(device("a", 0), device("b", 1), device("c", 0, region="small", channel="other", peer="third"))
    assert [bus.name for bus in message_buses(plan, Role.BACKEND)] == ["a+b", "c"]
    assert message_buses(plan, Role.FRONTEND) == []
    assert find_bus(plan, Role.BACKEND, "b")[1].devid == 1


@pytest.mark.parametrize(
    ("devices", "said"),
    [
        ((device("a", 0), device("b", 0)), "device 'b': devid: found 0 a second time"),
        ((device("a", 65536),), "device 'a': devid: found 65536; allowed: up to 65535"),
        ((device("a"), device("b", 1, channel="other")), "device 'b': region: found 'shm', which 'a' uses"),
        ((device("a"), device("b", 1, region="small")), "device 'b': channel: found 'bus', which 'a' uses"),
    ],
)
def test_what_cannot_be_a_bus_is_refused(devices: tuple[str, ...], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        message_buses(plan_of(*devices), Role.BACKEND)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((None, None, None), "give either --file or --config"),
        (("a", Path("x"), Path("y")), "give either --file or --config"),
        ((None, Path("x"), None), "give the NAME"),
        (("z", Path("x"), None), "device 'z': no device that server serves over messages; allowed: a, n"),
        (("n", Path("x"), None), "device 'n': type: found 'net'; allowed: block"),
    ],
)
def test_what_to_serve_must_be_said(arguments: tuple[str | None, Path | None, Path | None], said: str) -> None:
    plan = plan_of(device("a"), device("n", 1, kind="net"))
    name, file, config = arguments
    with pytest.raises(ConfigurationError, match=said):
        choose_devices(plan, name, file, config=config)


def test_a_configuration_names_files_by_the_other_domain(tmp_path: Path) -> None:
    config = tmp_path / "backends.toml"
    entry = '[[device]]\nguest = "user"\ntype = "block"\ndevid = {}\nresource = {{ file = "/srv/{}.img"{} }}\n'
    config.write_text(entry.format(0, "{guest}", "") + entry.format(1, "b", ", read_only = true"))
    plan = plan_of(device("a", 0), device("b", 1))
    chosen = choose_devices(plan, None, None, config=config)
    assert {name: (str(disk.path), disk.read_only) for name, disk in chosen.items()} == {
        "a": ("/srv/user.img", False),
        "b": ("/srv/b.img", True),
    }
    config.write_text(entry.format(0, "a", ", direct = true"))
    with pytest.raises(ConfigurationError, match="no direct I/O"):
        choose_devices(plan, "a", None, config=config)
    with pytest.raises(ConfigurationError, match=r"no \[\[device\]\] for block 1 of guest 'user'"):
        choose_devices(plan, "b", None, config=config)


def test_the_command_says_where_the_plan_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = tmp_path / "plan.toml"
    plan.write_text(HEAD + device("a", region="small"))
    assert main(["msg", "info", "a", "--plan", str(plan)]) == 2
    assert "no device that server uses over messages" in capsys.readouterr().err
    assert main(["msg", "info", "a", "--plan", str(tmp_path / "none")]) == 2
    with pytest.raises(SystemExit):
        main(["msg", "verify", "a", "--size", "1000", "--plan", str(plan)])
    assert "a multiple of 512 such as 4096, 64K, 4M" in capsys.readouterr().err
