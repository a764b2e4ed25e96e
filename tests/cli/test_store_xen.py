"""`xenvirtio store serve --xen` as a process on an emulated host, its guests in this one: really killed, under load."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.xenstore.rings import client_of, port_of
from xenvirtio.ids import DomId
from xenvirtio.xen.emulated import Domain, EmulatedHost
from xenvirtio.xenstore.client import Operations, XenStoreClient

PROGRAM = """\
import sys
import xenvirtio.xen.linux.host as host
from xenvirtio.xen.emulated import connect_emulated
host.LinuxHypervisor = lambda: connect_emulated(sys.argv[1])
from xenvirtio.cli.main import main
raise SystemExit(main(["store", "serve", "--xen", *sys.argv[2:]]))
"""


class StoreProcess:
    """The store of a host; `kill` and `start` make its successor."""

    def __init__(self, directory: Path) -> None:
        self.host = EmulatedHost()
        self.host.listen(directory / "xen")
        self.socket = directory / "socket"
        self.pid_file = directory / "pid"
        self.command = [sys.executable, "-c", PROGRAM, str(directory / "xen"), "--socket", str(self.socket)]
        self.command += ["--state", str(directory / "state"), "--pid-file", str(self.pid_file)]
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        self.process = subprocess.Popen(self.command, stderr=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 60
        while not self._is_ready():
            assert self.process.poll() is None, self.process.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def _is_ready(self) -> bool:
        """The socket answers before the process has told its number, and a killed one leaves its own."""
        assert self.process is not None
        with socket.socket(socket.AF_UNIX) as probe:
            if probe.connect_ex(str(self.socket)):
                return False
        return self.pid_file.exists() and self.pid_file.read_text().strip() == str(self.process.pid)

    def end(self, number: int) -> str:
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.communicate(timeout=60)[1]

    def create(self, toolstack: XenStoreClient) -> Domain:
        domain = self.host.create_domain(memory_bytes=1 << 20)
        domain.give_xenstore()
        home = f"/local/domain/{domain.domid}"
        toolstack.mkdir(home)
        toolstack.set_permissions(home, [f"n{domain.domid}"])
        toolstack.introduce(domain.domid, 1, port_of(domain))
        return domain


@pytest.fixture
def store(tmp_path: Path) -> Iterator[StoreProcess]:
    store = StoreProcess(tmp_path)
    store.start()
    yield store
    if store.process is not None and store.process.poll() is None:
        store.end(signal.SIGKILL)
    store.host.close()


class Worker(threading.Thread):
    """A program in a guest: writes and reads back, changes two nodes in transactions, and counts."""

    def __init__(self, domain: Domain) -> None:
        super().__init__(daemon=True)
        self.client = client_of(domain)
        self.done = 0
        self.is_stopping = False
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self.client.watch("mine", "token")
            assert self.client.next_event(60) is not None
            while not self.is_stopping:
                number = self.done + 1
                self.client.write("mine", number)
                assert self.client.read("mine") == str(number)
                event = self.client.next_event(60)
                assert event is not None, "an event is lost"
                assert event.path == "mine"
                assert self.client.next_event(0) is None, "an event came twice"
                self._write_both(number)
                self.done = number
        except BaseException as error:
            self.error = error

    def _write_both(self, number: int) -> None:
        def act(transaction: Operations) -> None:
            transaction.write("a", number)
            transaction.write("b", number)

        self.client.transact(act)


def test_kill_9_under_load_is_not_noticed(store: StoreProcess) -> None:
    dom0 = store.host.domain(DomId(0))
    assert dom0 is not None
    with client_of(dom0) as toolstack:
        domains = [store.create(toolstack) for _ in range(3)]
        workers = [Worker(domain) for domain in domains]
        for worker in workers:
            worker.start()
        passing = []
        for _ in range(4):
            before = [worker.done for worker in workers]
            deadline = time.monotonic() + 60
            while any(worker.done < count + 20 for worker, count in zip(workers, before, strict=True)):
                assert time.monotonic() < deadline, [worker.error for worker in workers]
                time.sleep(0.01)
            store.end(signal.SIGKILL)
            store.start()
            passing.append(store.create(toolstack))  # a toolstack that goes through the kernel notices nothing either
        for worker in workers:
            worker.is_stopping = True
            worker.join(60)
            assert worker.error is None
        with XenStoreClient.at(store.socket) as other:
            for worker, domain in zip(workers, domains, strict=True):
                home = f"/local/domain/{domain.domid}"
                assert [other.read(f"{home}/{name}") for name in ("mine", "a", "b")] == [str(worker.done)] * 3
            assert other.control("check") == "OK"
            for domain in [*domains, *passing]:
                store.host.destroy_domain(domain.domid)
            deadline = time.monotonic() + 60
            while other.directory("/local/domain"):
                assert time.monotonic() < deadline
                time.sleep(0.01)
        for worker in workers:
            worker.client.close()
    assert store.host.domains() == [dom0]


def test_sigterm_leaves_the_rings_to_a_successor(store: StoreProcess) -> None:
    dom0 = store.host.domain(DomId(0))
    assert dom0 is not None
    assert store.process is not None
    assert int(store.pid_file.read_text()) == store.process.pid
    with client_of(dom0) as toolstack:
        domain = store.create(toolstack)
        with client_of(domain) as guest:
            guest.write("x", 1)
            logged = store.end(signal.SIGTERM)
            assert store.process.returncode == 0
            assert "rings" in logged
            assert not store.pid_file.exists()
            store.start()
            assert guest.read("x") == "1"


def test_a_second_store_on_one_host_is_refused_in_one_line(store: StoreProcess, tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "xen"), "--socket", str(tmp_path / "other"), "--no-state"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "only one XenStore server" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.skipif(os.path.exists("/dev/xen/privcmd"), reason="there is Xen here")
def test_without_xen_it_says_so(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "xenvirtio.cli.main", "store", "serve", "--xen", "--socket", str(tmp_path / "s")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "not on Xen" in done.stderr


def test_without_a_place_to_listen_it_says_what_to_give() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "xenvirtio.cli.main", "store", "serve"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert "--xen for the usual place" in done.stderr
