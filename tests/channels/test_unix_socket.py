from __future__ import annotations

import socket
from pathlib import Path

import pytest

from xenvirtio.channels.unix_socket import UnixSocketChannel


def test_bytes_both_ways_without_blocking() -> None:
    ours, theirs = socket.socketpair()
    channel = UnixSocketChannel(ours)
    assert channel.receive() == b""
    assert channel.send(b"hello") == 5
    assert theirs.recv(10) == b"hello"
    theirs.sendall(b"answer")
    assert channel.receive() == b"answer"
    theirs.close()
    assert channel.receive() is None
    channel.close()


def test_a_full_socket_takes_nothing() -> None:
    ours, theirs = socket.socketpair()
    channel = UnixSocketChannel(ours)
    while channel.send(b"x" * 65536):
        pass
    assert channel.send(b"x") == 0
    channel.close()
    theirs.close()


def test_connecting(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        UnixSocketChannel.connect(tmp_path / "none")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        channel = UnixSocketChannel.connect(tmp_path / "s")
        assert channel.fileno() >= 0
        channel.close()
