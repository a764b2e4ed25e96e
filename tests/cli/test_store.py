from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from xenvirtio.channels.xenbus_device import KernelStore
from xenvirtio.cli.main import main
from xenvirtio.cli.store_client import escape, unescape
from xenvirtio.errors import ConfigurationError, XenStoreError
from xenvirtio.ids import DomId
from xenvirtio.xenstore.client import XenStoreClient
from xenvirtio.xenstore.connect import Presence
from xenvirtio.xenstore.open import wait_store
from xenvirtio.xenstore.profile import FULL, ZEPHYR_DOM0, Profile
from xenvirtio.xenstore.serve import XenStoreService
from xenvirtio.xenstore.server import XenStoreServer
from xenvirtio.xenstore.wire import MessageType

Run = Callable[..., str]

BARE = Profile(
    "bare",
    FULL.operations
    - {MessageType.TRANSACTION_START, MessageType.TRANSACTION_END, MessageType.DIRECTORY_PART, MessageType.GET_PERMS},
)


class Server:
    """`xenvirtio store serve` in a process of its own."""

    def __init__(self, directory: Path, *, state: bool = True) -> None:
        self.socket = directory / "socket"
        self.state = directory / "state"
        self.command = [sys.executable, "-m", "xenvirtio.cli.main", "store", "serve", "--socket", str(self.socket)]
        self.command += ["--state", str(self.state), "--log-format", "json"] if state else []
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        self.process = subprocess.Popen(self.command, stderr=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 30
        with socket.socket(socket.AF_UNIX) as probe:
            while probe.connect_ex(str(self.socket)):
                assert self.process.poll() is None, self.process.communicate()[1]
                assert time.monotonic() < deadline
                time.sleep(0.02)

    def end(self, number: int) -> str:
        """Send a signal and return what was logged."""
        assert self.process is not None
        self.process.send_signal(number)
        _, logged = self.process.communicate(timeout=20)
        return logged


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path)
    server.start()
    yield server
    if server.process is not None and server.process.poll() is None:
        server.end(signal.SIGKILL)


# -- serve


def test_sigterm_ends_cleanly_and_a_restart_finds_everything(server: Server) -> None:
    with XenStoreClient.at(server.socket) as client:
        client.write("/a/b", b"\x00\xff")
        client.set_permissions("/a/b", ["n3", "r5"])
    logged = server.end(signal.SIGTERM)
    assert server.process is not None
    assert server.process.returncode == 0
    assert [json.loads(line)["message"] for line in logged.splitlines()] == ["serving", "ended"]
    assert not server.socket.exists()
    server.start()
    with XenStoreClient.at(server.socket) as client:
        assert client.read_bytes("/a/b") == b"\x00\xff"
        assert client.get_permissions("/a/b") == ["n3", "r5"]


class Writer(threading.Thread):
    """Writes until told to stop: single nodes, and pairs in transactions. Remembers what was acknowledged."""

    def __init__(self, path: Path, name: str) -> None:
        super().__init__()
        self._path = path
        self._name = name
        self.acknowledged = -1
        self.stopping = False

    def run(self) -> None:
        with XenStoreClient.at(self._path, timeout_s=0.5) as client:
            number = 0
            while not self.stopping:
                try:
                    client.write(f"/single/{self._name}-{number % 50}", number)
                    client.transact(lambda nodes, number=number: self._pair(nodes, number))  # type: ignore[misc]
                except XenStoreError:
                    continue  # the server is away: the same number again
                self.acknowledged = number
                number += 1

    def _pair(self, nodes: XenStoreClient, number: int) -> None:
        nodes.write(f"/pair/{self._name}/one", number)
        nodes.write(f"/pair/{self._name}/two", number)


def test_kill_9_under_load_loses_nothing_acknowledged_and_halves_no_transaction(server: Server) -> None:
    names = ["x", "y", "z"]
    for _ in range(5):
        writers = [Writer(server.socket, name) for name in names]
        with XenStoreClient.at(server.socket) as client:
            client.rm("/pair")
        for writer in writers:
            writer.start()
        deadline = time.monotonic() + 20
        while min(writer.acknowledged for writer in writers) < 30 and time.monotonic() < deadline:
            time.sleep(0.01)
        server.end(signal.SIGKILL)
        for writer in writers:
            writer.stopping = True
        for writer in writers:
            writer.join(10)
        server.start()
        with XenStoreClient.at(server.socket) as client:
            for name, writer in zip(names, writers, strict=True):
                assert writer.acknowledged >= 30
                one, two = client.read(f"/pair/{name}/one"), client.read(f"/pair/{name}/two")
                assert one == two, "half a transaction"
                assert writer.acknowledged <= int(one) <= writer.acknowledged + 1
                for number in range(max(0, writer.acknowledged - 40), writer.acknowledged + 1):
                    assert int(client.read(f"/single/{name}-{number % 50}")) == number
            assert client.control("check") == "OK"


def test_a_watcher_reconnects_and_its_watch_fires(server: Server) -> None:
    with XenStoreClient.at(server.socket) as client:
        client.watch("/a", "token")
        assert client.next_event(5) is not None
        server.end(signal.SIGKILL)
        server.start()
        event = client.next_event(10)
        assert event is not None
        assert event.path == "/a"
        client.write("/a/b", 1)
        event = client.next_event(5)
        assert event is not None
        assert event.path == "/a/b"


def test_the_state_in_memory_ends_with_the_process(tmp_path: Path) -> None:
    server = Server(tmp_path, state=False)
    server.start()
    with XenStoreClient.at(server.socket) as client:
        client.write("/a", 1)
    server.end(signal.SIGTERM)
    server.start()
    with XenStoreClient.at(server.socket) as client:
        assert not client.exists("/a")
    server.end(signal.SIGINT)
    assert list(tmp_path.iterdir()) == []


def test_a_server_whose_thread_fails_ends_with_1(tmp_path: Path) -> None:
    program = (
        "from xenvirtio.xenstore.serve import XenStoreService as S\n"
        "def fail(self): raise RuntimeError('bug')\n"
        "S._run = fail\n"
        "from xenvirtio.cli.main import main\n"
        f"raise SystemExit(main(['store', 'serve', '--socket', {str(tmp_path / 's')!r}]))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30)
    assert done.returncode == 1
    assert "the server failed" in done.stderr


@pytest.mark.parametrize(
    ("prepare", "socket_path", "state", "message"),
    [
        ("garbage", "s", "state", "is not the state of a xenvirtio store"),
        ("", "none/s", "", "No such file"),
        ("", "s" * 200, "", "too long"),
        ("", "s", "none/state", "No such file"),
        ("listening", "s", "", "in use"),
    ],
)
def test_what_cannot_be_served_is_one_line(
    tmp_path: Path,
    prepare: str,
    socket_path: str,
    state: str,
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if prepare == "garbage":
        (tmp_path / "state").write_bytes(b"\x00garbage\n" * 50)
    with socket.socket(socket.AF_UNIX) as other:
        if prepare == "listening":
            other.bind(str(tmp_path / "s"))
            other.listen()
        arguments = ["store", "serve", "--socket", str(tmp_path / socket_path)]
        assert main(arguments + (["--state", str(tmp_path / state)] if state else [])) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert message in last
    assert str(tmp_path) in last


@pytest.mark.skipif(shutil.which("xenstore-ls") is None, reason="package xenstore-utils is not installed")
def test_debians_tools_against_store_serve(server: Server) -> None:
    environment = dict(os.environ, XENSTORED_PATH=str(server.socket))

    def tool(*command: str) -> str:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=20, check=True)
        return done.stdout

    watcher = subprocess.Popen(
        ["stdbuf", "-oL", "xenstore-watch", "-n", "2", "/a"], env=environment, stdout=subprocess.PIPE, text=True
    )
    assert watcher.stdout is not None
    with watcher.stdout:
        assert watcher.stdout.readline() == "/a\n"
        tool("xenstore-write", "/a/b", "hello")
        assert watcher.stdout.readline() == "/a/b\n"
    assert watcher.wait(10) == 0
    server.end(signal.SIGKILL)
    server.start()
    assert tool("xenstore-ls", "-f", "/a") == '/a/b = "hello"\n'


# -- the client


@pytest.fixture(params=[FULL, ZEPHYR_DOM0, BARE], ids=lambda profile: profile.name)
def profile(request: pytest.FixtureRequest) -> Profile:
    assert isinstance(request.param, Profile)
    return request.param


@pytest.fixture
def service(tmp_path: Path, profile: Profile) -> Iterator[XenStoreService]:
    with XenStoreService(XenStoreServer(time.monotonic, profile=profile)) as service:
        service.listen(tmp_path / "socket")
        service.listen(tmp_path / "guest", DomId(5))
        yield service


@pytest.fixture
def run(service: XenStoreService, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    def run_command(*arguments: str, code: int = 0, who: str = "socket") -> str:
        command, *rest = arguments
        words = [command, rest.pop(0)] if command == "perms" else [command]
        assert main(["store", *words, "--socket", str(tmp_path / who), *rest]) == code, capsys.readouterr().err
        out, err = capsys.readouterr()
        if code == 0:
            assert err == ""
            return out
        return out + err

    return run_command


only_full = pytest.mark.parametrize("profile", [FULL], indirect=True, ids=["full"])


def test_nodes_are_written_listed_read_and_removed_on_any_server(run: Run) -> None:
    assert run("write", "/a/b", "1", "/a/c", "two words") == ""
    assert run("mkdir", "/a/d/", "/a/e") == ""
    assert run("ls", "/a") == "b\nc\nd\ne\n"
    assert run("ls", "/a/d") == ""
    assert run("read", "/a/b", "/a/c") == "1\ntwo words\n"
    assert run("tree", "/a") == '/a\n├─ b = "1"\n├─ c = "two words"\n├─ d\n└─ e\n'
    assert run("tree", "-d", "0", "/a/") == "/a\n"
    assert run("tree", "--no-values", "/a").splitlines()[1] == "├─ b"
    assert run("rm", "/a/b", "/a/none") == ""
    run("exists", "/a/c")
    assert run("exists", "/a/b", code=1) == ""
    assert run("watch", "-n", "1", "--timeout", "5", "/a") == "/a\n"


def test_machines_get_json(run: Run) -> None:
    run("write", "/a/b", "1")
    run("write", "-e", "/a/c", "\\xff\\n")
    assert json.loads(run("ls", "--format", "json", "/a")) == ["b", "c"]
    assert json.loads(run("read", "--format", "json", "/a/b", "/a/c")) == [
        {"path": "/a/b", "value": "1"},
        {"path": "/a/c", "value": None, "hex": "ff0a"},
    ]
    tree = json.loads(run("tree", "--format", "json", "/a"))
    assert tree == [
        {"path": "/a", "value": ""},
        {"path": "/a/b", "value": "1"},
        {"path": "/a/c", "value": None, "hex": "ff0a"},
    ]
    assert json.loads(run("watch", "--format", "json", "-n", "1", "/a")) == {"path": "/a"}


@only_full
def test_long_listing_and_permissions(run: Run) -> None:
    run("write", "/a/b/c", "1", "/a/d", "x")
    run("perms", "set", "-r", "/a/b", "n0", "r5")
    assert run("ls", "-l", "/a") == 'n0,r5  1  b\nn0     0  d = "x"\n'
    assert run("tree", "-p", "/a/b") == '/a/b  (n0,r5)\n└─ c = "1"  (n0,r5)\n'
    assert run("perms", "get", "/a/b/c").splitlines() == [
        "n0  domain 0 owns it, domains not named may: nothing",
        "r5  domain 5 may: read",
    ]
    assert json.loads(run("perms", "get", "--format", "json", "/a/b")) == ["n0", "r5"]
    (child, _) = json.loads(run("ls", "-l", "--format", "json", "/a"))
    assert child == {"path": "/a/b", "value": "", "perms": ["n0", "r5"], "children": 1}
    assert "is no permission" in run("perms", "set", "/a", "x0", code=2)


def test_errors_are_one_line_that_names_the_path(run: Run) -> None:
    for command in (["read", "/no/ne"], ["ls", "/no/ne"], ["tree", "/no/ne"], ["rm", "/no/ne"]):
        line = run(*command, code=1)
        assert line.startswith("xenvirtio: /no/ne: no such node (ENOENT")
        assert line.count("\n") == 1
    assert "letters, digits" in run("write", "/a+b", "1", code=1)
    assert "root cannot be removed" in run("rm", "/", code=1)
    assert "too long" in run("write", "/a", "x" * 5000, code=1)
    assert "has no value" in run("write", "/a", "1", "/b", code=2)
    assert "0 of" not in run("watch", "--timeout", "0.1", "/a")
    assert "1 of 2 events" in run("watch", "-n", "2", "--timeout", "1", "/a", code=1)


@only_full
def test_who_may_is_said_to_whom_it_may_be_said(run: Run) -> None:
    run("write", "/open/secret", "1", "/closed/secret", "2")
    run("perms", "set", "/open", "r0")
    run("perms", "set", "/open/secret", "n0", "w5")
    assert "not permitted (EACCES): /open has: domain 0 owns it, domains not named may: read" in run(
        "read", "/open/secret", who="guest", code=1
    )
    run("perms", "set", "/open/secret", "n0", "r5")
    line = run("write", "/open/secret", "2", who="guest", code=1)
    assert "domain 0 owns it, domains not named may: nothing; domain 5 may: read" in line
    assert "hidden from this domain too" in run("read", "/closed/secret", who="guest", code=1)
    shown = run("tree", "/open", who="guest")
    assert shown == '/open\n└─ secret = "1"\n'
    run("perms", "set", "/open/secret", "n0")
    shown = run("tree", "/open", who="guest", code=1)
    assert "└─ secret  [not permitted]\n" in shown
    assert "xenvirtio: /open/secret: not permitted" in shown


@pytest.mark.parametrize("profile", [BARE], indirect=True, ids=["bare"])
def test_what_a_reduced_server_lacks_is_named_and_the_rest_is_shown(
    run: Run, tmp_path: Path, service: XenStoreService
) -> None:
    with XenStoreClient.at(tmp_path / "socket") as client:
        for number in range(200):
            client.write(f"/big/a-rather-long-name-of-a-node-{number}", number)
        client.write("/small/x", 1)
    shown = run("tree", code=1)
    assert "big  [more children than fit into a message, and this server lacks DIRECTORY_PART]" in shown
    assert '   └─ x = "1"' in shown
    assert "lacks the operation (ENOSYS, DIRECTORY_PART)" in run("ls", "/big", code=1)
    assert "lacks the operation (ENOSYS, GET_PERMS)" in run("perms", "get", "/", code=1)
    assert '?  0  x = "1"' in run("ls", "-l", "/small")


@only_full
def test_a_large_directory_and_a_deep_tree(run: Run, tmp_path: Path) -> None:
    deep = "/d" * 900
    with XenStoreClient.at(tmp_path / "socket") as client:
        for number in range(600):
            client.write(f"/big/a-rather-long-name-{number}", number)
        client.write(deep, "bottom")
    assert len(run("ls", "/big").splitlines()) == 600
    assert run("tree", "/d").count("\n") == 900
    assert len(json.loads(run("tree", "/d", "--format", "json"))) == 900


@only_full
def test_the_very_bytes(service: XenStoreService, capfdbinary: pytest.CaptureFixture[bytes], tmp_path: Path) -> None:
    with XenStoreClient.at(tmp_path / "socket") as client:
        client.write("/a", b"\x00\xff")
    code = main(["store", "read", "--raw", "--socket", str(tmp_path / "socket"), "/a"])
    assert (code, capfdbinary.readouterr().out) == (0, b"\x00\xff")


@only_full
def test_a_watch_shows_changes_as_they_come(service: XenStoreService, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "xenvirtio.cli.main", "store", "watch", "-n", "3", "/a", "@introduceDomain"]
    environment = dict(os.environ, XENSTORED_PATH=str(tmp_path / "socket"))
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as watcher:
        assert watcher.stdout is not None
        assert {watcher.stdout.readline(), watcher.stdout.readline()} == {"/a\n", "@introduceDomain\n"}
        with XenStoreClient.at(tmp_path / "socket") as client:
            client.write("/a/b", 1)
        assert watcher.stdout.readline() == "/a/b\n"
        assert watcher.wait(10) == 0


def test_without_a_server_it_says_how_to_get_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    began = time.monotonic()
    assert main(["store", "ls", "--socket", str(tmp_path / "none")]) == 1
    assert time.monotonic() - began < 5
    assert "xenvirtio store serve --socket" in capsys.readouterr().err


def test_it_waits_for_a_server_when_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    service = XenStoreService()
    later = threading.Timer(0.3, lambda: service.listen(tmp_path / "socket"))
    with service:
        later.start()
        assert main(["store", "ls", "--socket", str(tmp_path / "socket"), "--wait", "20"]) == 0
    assert capsys.readouterr().out == "tool\n"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (b"", ""),
        (b"plain text", "plain text"),
        ("Gerät".encode(), "Gerät"),
        (b"a\\b\n\r\t", "a\\\\b\\n\\r\\t"),
        (b"\x00\x1b[31m\xff", "\\x00\\x1b[31m\\xff"),
        ("\u202e".encode(), "\\xe2\\x80\\xae"),
    ],
)
def test_values_are_one_printable_line_and_come_back(value: bytes, text: str) -> None:
    assert escape(value) == text
    assert unescape(text) == value


def test_every_byte_comes_back() -> None:
    everything = bytes(range(256)) * 2
    assert unescape(escape(everything)) == everything
    assert escape(everything).isprintable()


@pytest.mark.parametrize("text", ["\\q", "end\\", "\\x0", "\\xzz"])
def test_an_unknown_escape_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match="is no escape"):
        unescape(text)


@pytest.mark.parametrize("words", [[], ["serve"], ["ls"], ["tree"], ["write"], ["watch"], ["perms"], ["perms", "set"]])
def test_help_teaches(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["store", *words, "--help"])
    assert ended.value.code == 0
    assert len(capsys.readouterr().out.splitlines()) > 8


def test_waiting_for_a_server(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "socket"
    wait = ["store", "wait", "--socket", str(path)]
    assert main([*wait, "--timeout", "0"]) == 1
    assert capsys.readouterr().out == f"late: XenStore is not there yet: there is no {path}\n"
    server = Server(tmp_path, state=False)
    server.start()
    assert main([*wait, "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["state"] == "ready"
    server.end(signal.SIGTERM)


def test_waiting_where_no_xenstore_will_ever_be(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert wait_store.__kwdefaults__ is not None
    absent = Presence(KernelStore.ABSENT, "none promised")
    monkeypatch.setitem(wait_store.__kwdefaults__, "look", lambda _: absent)
    assert main(["store", "wait", "--timeout", "3600"]) == 3
    assert capsys.readouterr().out == "absent: no XenStore: none promised\n"
    assert main(["store", "ls"]) == 1
    assert "no XenStore: none promised" in capsys.readouterr().err
