"""`xenvirtio argo` between two domains of an emulated host, each program a process of its own."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from xenvirtio.cli.argo_commands import percentile
from xenvirtio.cli.main import main
from xenvirtio.xen.emulated import EmulatedHost

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[str]:
    with EmulatedHost() as host:
        host.listen(tmp_path / "hypervisor")
        yield str(host.create_domain(memory_bytes=4096).domid)


def hear_interrupts() -> None:
    """A shell that runs the tests in the background has SIGINT ignored, and its children inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    started: list[subprocess.Popen[str]] = []

    def start_one(*arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "xenvirtio", "argo", *arguments, "--emulated", str(tmp_path)]
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=hear_interrupts,
        )
        started.append(process)
        return process

    yield start_one
    for process in started:
        process.kill()
        process.communicate()


def listener(start: Start, guest: str, *options: str) -> subprocess.Popen[str]:
    process = start("listen", "--port", "0x100", "--from", "0", "--domid", guest, *options)
    assert process.stderr is not None
    assert process.stderr.readline() == "listening on port 0x100\n"
    return process


def test_ping(start: Start, guest: str) -> None:
    listener(start, guest, "--echo")
    ping = start("ping", f"{guest}:0x100", "--count", "20", "--interval", "0", "--size", "5000", "--format=json")
    out, err = ping.communicate(timeout=60)
    assert ping.returncode == 0, err
    facts = json.loads(out)
    assert (facts["sent"], facts["received"], facts["size_bytes"]) == (20, 20, 5000)
    assert 0 < facts["min_ms"] <= facts["median_ms"] <= facts["p99_ms"] <= facts["max_ms"]


def test_ping_without_an_answer(start: Start, guest: str) -> None:
    listener(start, guest)
    ping = start("ping", f"{guest}:0x100", "--count", "1", "--timeout", "0.1")
    out, _ = ping.communicate(timeout=60)
    assert ping.returncode == 1
    assert out == "seq=0 no answer\n1 sent, 0 answered\n"


def test_nobody_listens(start: Start, guest: str) -> None:
    send = start("send", f"{guest}:0x200", "hello")
    _, err = send.communicate(timeout=60)
    assert send.returncode == 1
    assert err.splitlines()[-1].endswith("nobody there listens on that port for this domain")


def test_messages_are_printed(start: Start, guest: str) -> None:
    process = listener(start, guest, "-n", "3", "--format", "json", "--timeout", "60")
    assert start("send", f"{guest}:0x100", "--type", "0xdeadbeef", "one", "two\n").wait(60) == 0
    start("send", f"{guest}:256", "-").communicate(input="three", timeout=60)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    rows = [json.loads(line) for line in out.splitlines()]
    assert [(row["domid"], row["type"], row["text"]) for row in rows] == [
        (0, 0xDEADBEEF, "one"),
        (0, 0xDEADBEEF, "two\\n"),
        (0, 0, "three"),
    ]


def test_a_listener_that_gets_too_few(start: Start, guest: str) -> None:
    process = listener(start, guest, "-n", "1", "--timeout", "0.1")
    assert process.wait(60) == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_listener_that_is_ended_leaves_its_port_free(start: Start, guest: str, number: signal.Signals) -> None:
    first = listener(start, guest)
    first.send_signal(number)
    first.wait(60)
    listener(start, guest)


def test_a_port_that_is_taken(start: Start, guest: str) -> None:
    listener(start, guest)
    second = start("listen", "--port", "0x100", "--from", "0", "--domid", guest)
    assert second.wait(60) == 1
    assert second.stderr is not None
    assert "xenvirtio argo release" in second.stderr.read()


def test_release(start: Start, guest: str) -> None:
    release = start("release", "--port", "0x100", "--from", guest)
    assert release.wait(60) == 1
    assert release.stderr is not None
    assert "this domain has no such ring" in release.stderr.read()


def test_wrong_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["ping", "99999:1"], ["listen", "--port", "-1", "--from", "0"]):
        with pytest.raises(SystemExit):
            main(["argo", *arguments])
        assert "allowed: a number from 0" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["argo", "send", "1"])
    assert "allowed: DOMID:PORT" in capsys.readouterr().err


def test_a_machine_without_xen(capsys: pytest.CaptureFixture[str]) -> None:
    if Path("/dev/xen/privcmd").exists():
        pytest.skip("this machine runs on Xen")
    assert main(["argo", "send", "1:1", "x"]) == 1
    assert "not on Xen" in capsys.readouterr().err


def test_percentiles() -> None:
    values = [float(value) for value in range(1, 101)]
    assert [percentile(values, share) for share in (0, 0.5, 0.9, 0.99, 1)] == [1, 50, 90, 99, 100]
    assert percentile([7.0], 0.5) == 7
