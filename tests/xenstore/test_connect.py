from __future__ import annotations

import socket
from pathlib import Path

import pytest

from xenvirtio.channels.unix_socket import UnixSocketChannel
from xenvirtio.xenstore import connect
from xenvirtio.xenstore.connect import connect_default, connect_path, socket_paths


@pytest.mark.parametrize(
    ("environment", "paths"),
    [
        ({}, ["/run/xenstored/socket", "/var/run/xenstored/socket"]),
        ({"XENSTORED_RUNDIR": "/r"}, ["/r/socket"]),
        ({"XENSTORED_RUNDIR": "/r", "XENSTORED_PATH": "/p"}, ["/p"]),
    ],
)
def test_where_the_socket_may_be(environment: dict[str, str], paths: list[str]) -> None:
    assert socket_paths(environment) == [Path(path) for path in paths]


def test_nobody_there(tmp_path: Path) -> None:
    assert connect_path(tmp_path / "none") is None
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "dead"))
    assert connect_path(tmp_path / "dead") is None


def test_the_environment_chooses_the_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XENSTORED_PATH", str(tmp_path / "socket"))
    assert connect_default() is None
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        listener.listen()
        channel = connect_default()
        assert isinstance(channel, UnixSocketChannel)
        channel.close()


def test_a_device_is_not_even_opened_before_the_kernel_is_connected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = tmp_path / "xenbus"
    device.touch()
    monkeypatch.setattr(connect, "XenbusDevice", pytest.fail)
    assert connect_path(device) is None
