from __future__ import annotations

import os
import tomllib
from pathlib import Path

import pytest

from xenvirtio.daemon.configuration import Configuration, load_configuration, parse_configuration
from xenvirtio.errors import ConfigurationError
from xenvirtio.virtio.device import DeviceType

DEVICE = '[[device]]\nguest = "g"\ntype = "block"\nresource = { file = "/d.img" }\n'


def parse(text: str) -> Configuration:
    return parse_configuration(tomllib.loads(text), "backends.toml")


def test_an_empty_file_serves_what_xenstore_names() -> None:
    configuration = parse("")
    assert configuration.daemon.serve_disks
    assert configuration.daemon.state_dir == Path("/run/xenvirtio")
    assert configuration.devices == ()


def test_every_key_is_taken() -> None:
    configuration = parse("""
[daemon]
state_dir = "/var/lib/state"
serve_disks = false
indirect_with_grants = false
[[device]]
guest = "domu-*"
type = "block"
devid = 1
resource = { file = "/srv/{guest}.img", read_only = true, direct = true }
serial = "data"
queues = 4
queue_size = 128
""")
    assert (configuration.daemon.state_dir, configuration.daemon.serve_disks) == (Path("/var/lib/state"), False)
    (device,) = configuration.devices
    assert (device.type, device.devid, device.serial, device.queues, device.queue_size) == (
        DeviceType.BLOCK, 1, "data", 4, 128,
    )  # fmt: skip
    assert device.resource.path_for("domu-1") == Path("/srv/domu-1.img")
    assert (device.resource.read_only, device.resource.direct) == (True, True)


def test_the_first_entry_that_matches_is_used() -> None:
    configuration = parse(
        DEVICE.replace('"g"', '"web-*"').replace("/d.img", "/first") + "devid = 0\n"
        + DEVICE.replace('"g"', '"*"').replace("/d.img", "/second")
        + DEVICE.replace('"g"', '"0b5c*"').replace("/d.img", "/third")
    )  # fmt: skip

    def file(name: str, uuid: str, devid: int) -> str | None:
        found = configuration.find(name, uuid, DeviceType.BLOCK, devid)
        return None if found is None else found.resource.file

    assert file("web-1", "", 0) == "/first"
    assert file("web-1", "", 1) == "/second"
    assert file("db", "0b5c-11", 0) == "/second"
    assert configuration.find("web-1", "", DeviceType.NET, 0) is None
    assert parse(DEVICE).find("other", "", DeviceType.BLOCK, 0) is None
    assert parse(DEVICE.replace('"g"', '"0b5c*"')).find("db", "0b5c-11", DeviceType.BLOCK, 0) is not None


BAD = [
    ("demon = {}", "backends.toml: unknown key 'demon'; allowed: daemon, device"),
    ("daemon = 3", "backends.toml: daemon: found 3; allowed: a table"),
    ("daemon.state_dir = 3", "backends.toml: daemon: state_dir: found 3; allowed: text in quotes"),
    ('daemon.state_dir = "run"', "backends.toml: daemon: state_dir: found 'run'; allowed: an absolute path"),
    ("daemon.serve_disks = 1", "backends.toml: daemon: serve_disks: found 1; allowed: true or false"),
    ("daemon.serve = true", "backends.toml: daemon: unknown key 'serve'; "
     "allowed: state_dir, serve_disks, indirect_with_grants"),
    ("device = {}", "backends.toml: device: found {}; allowed: tables headed [[device]]"),
    ("device = [1]", "backends.toml: device: found [1]; allowed: tables headed [[device]]"),
    ("[[device]]", "backends.toml: device[0]: key 'type' is missing; it takes text in quotes"),
    (DEVICE + '[[device]]\ntype = "floppy"', "backends.toml: device[1]: type: found 'floppy'; allowed: one of block"),
    ('[[device]]\ntype = "block"', "backends.toml: device[0]: key 'resource' is missing; "
     'for example resource = { file = "/srv/d.img" }'),
    (DEVICE.replace("{ file", "{ path"), "backends.toml: device[0]: resource: key 'file' is missing; "
     "it takes text in quotes"),
    (DEVICE.replace('"/d.img"', '"d.img"'), "backends.toml: device[0]: resource: file: found 'd.img'; "
     "allowed: an absolute path"),
    (DEVICE.replace(" }", ", ro = true }"), "backends.toml: device[0]: resource: unknown key 'ro'; "
     "allowed: file, read_only, direct"),
    (DEVICE.replace('guest = "g"\n', ""), "backends.toml: device[0]: key 'guest' is missing; it takes text in quotes"),
    (DEVICE.replace('"g"', '""'), "backends.toml: device[0]: guest: found ''; "
     'allowed: a guest name, a UUID or a pattern such as "domu-*"'),
    (DEVICE + "devid = true", "backends.toml: device[0]: devid: found True; allowed: a whole number"),
    (DEVICE + "devid = 536870912",
     "backends.toml: device[0]: devid: found 536870912; allowed: a number from 0 to 536870911"),
    (DEVICE + f'serial = "{"x" * 21}"', f"backends.toml: device[0]: serial: found '{'x' * 21}'; "
     "allowed: at most 20 ASCII characters"),
    (DEVICE + 'serial = "é"', "backends.toml: device[0]: serial: found 'é'; allowed: at most 20 ASCII characters"),
    (DEVICE + "queues = 0", "backends.toml: device[0]: queues: found 0; allowed: a number from 1 to 16"),
    (DEVICE + "queues = 1.5", "backends.toml: device[0]: queues: found 1.5; allowed: a whole number"),
    (DEVICE + "queue_size = 100", "backends.toml: device[0]: queue_size: found 100; "
     "allowed: a power of two from 4 to 1024"),
    (DEVICE + "queue_size = 2", "backends.toml: device[0]: queue_size: found 2; "
     "allowed: a power of two from 4 to 1024"),
    (DEVICE + "speed = 9", "backends.toml: device[0]: unknown key 'speed'; "
     "allowed: type, resource, guest, devid, serial, queues, queue_size"),
    (DEVICE.replace('"/d.img"', '"/d\\u0000.img"'), "backends.toml: device[0]: resource: file: found '/d\\x00.img'; "
     "allowed: an absolute path"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "message"), BAD)
def test_what_is_wrong_is_named_with_place_finding_and_remedy(text: str, message: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        parse(text)
    assert str(error.value) == message
    assert "\n" not in message


def test_a_file_that_is_not_toml(tmp_path: Path) -> None:
    path = tmp_path / "b.toml"
    path.write_text("[daemon\n")
    with pytest.raises(ConfigurationError, match=r"b\.toml: not TOML: .*line 1"):
        load_configuration(path)
    path.write_bytes(b"a = '\xff'")
    with pytest.raises(ConfigurationError, match=r"b\.toml: not UTF-8 text \(byte 5\)"):
        load_configuration(path)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="No such file or directory; give the path of a readable file"):
        load_configuration(tmp_path / "none.toml")
    with pytest.raises(ConfigurationError, match="Is a directory"):
        load_configuration(tmp_path)
    if os.geteuid():
        path = tmp_path / "secret.toml"
        path.touch(0)
        with pytest.raises(ConfigurationError, match="Permission denied"):
            load_configuration(path)
