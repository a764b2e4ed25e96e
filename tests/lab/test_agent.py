"""The agent and its channel, joined by a socket pair in this process instead of a virtio port."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from xenvirtio.errors import ResourceError
from xenvirtio.lab.agent import Agent
from xenvirtio.lab.channel import AgentChannel
from xenvirtio.lab.dom0 import CommandError, Dom0


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[tuple[Path, list[socket.socket]]]:
    """A Unix socket that an agent serves, and its accepted connection."""
    path = tmp_path / "agent"
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    server.bind(str(path))
    server.listen()
    accepted: list[socket.socket] = []

    class GoneError(Exception):
        pass

    def serve() -> None:
        connection, _ = server.accept()
        accepted.append(connection)

        def read() -> bytes:
            data = connection.recv(65536)
            if not data:
                raise GoneError
            return data

        try:
            Agent(read, connection.sendall).serve()
        except GoneError:
            connection.close()

    thread = threading.Thread(target=serve)
    thread.start()
    yield path, accepted
    thread.join(10)
    server.close()


@pytest.fixture
def dom0(listener: tuple[Path, list[socket.socket]], monkeypatch: pytest.MonkeyPatch) -> Iterator[Dom0]:
    import subprocess

    real = subprocess.Popen

    def popen_anywhere(*arguments: object, **options: object) -> object:
        options.pop("cwd", None)  # /root is dom0's, and may not be ours
        return real(*arguments, **options)  # type: ignore[call-overload]

    monkeypatch.setattr("xenvirtio.lab.agent.subprocess.Popen", popen_anywhere)
    channel = AgentChannel(listener[0])
    yield Dom0(channel)
    channel.close()


def test_a_command_gives_its_output_and_status(dom0: Dom0) -> None:
    assert dom0.run("echo out; echo err >&2").output == "out\nerr\n"
    assert dom0.run("exit 3", check=False).status == 3


def test_standard_input_reaches_the_command(dom0: Dom0) -> None:
    assert dom0.run("cat", stdin="word").output == "word"


def test_a_failing_command_raises_with_its_output(dom0: Dom0) -> None:
    with pytest.raises(CommandError, match=r"ended with 4: why"):
        dom0.run("echo why; exit 4")


def test_a_command_that_runs_too_long_is_killed_with_its_children(dom0: Dom0) -> None:
    with pytest.raises(CommandError, match="did not end in time"):
        dom0.run("sleep 60 | sleep 60", timeout_s=0.2)


def test_commands_run_side_by_side(dom0: Dom0, tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    waiting = threading.Thread(target=dom0.run, args=(f"mkfifo {fifo}; cat {fifo}",))
    waiting.start()
    dom0.run(f"until [ -p {fifo} ]; do :; done; echo go > {fifo}", timeout_s=20)
    waiting.join(20)
    assert not waiting.is_alive()


def test_files_of_any_size_go_both_ways(dom0: Dom0, tmp_path: Path) -> None:
    data = bytes(range(256)) * 3000
    dom0.write_file(str(tmp_path / "new/file"), data, 0o600)
    assert dom0.read_file(str(tmp_path / "new/file")) == data
    assert (tmp_path / "new/file").stat().st_mode & 0o777 == 0o600
    dom0.write_file(str(tmp_path / "new/file"), b"")
    assert dom0.read_file(str(tmp_path / "new/file")) == b""


def test_a_background_program_is_signalled_and_waited_for(dom0: Dom0, tmp_path: Path) -> None:
    program = dom0.spawn("sleep 60", str(tmp_path / "log"))
    assert program.is_running()
    program.signal("KILL")
    assert program.wait(20) == -9


def test_an_operation_that_fails_in_dom0_is_an_error_here(dom0: Dom0) -> None:
    with pytest.raises(ResourceError, match="FileNotFoundError"):
        dom0.read_file("/nowhere/at/all")


def test_remains_of_another_conversation_are_skipped(dom0: Dom0, listener: tuple[Path, list[socket.socket]]) -> None:
    dom0.run("true")
    listener[1][0].sendall(b'of a reply"}}\n{"id": 1, "ok": true}\n[]\n')
    assert dom0.run("echo fine").output == "fine\n"
