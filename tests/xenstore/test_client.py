"""The client against our own server, behind a real socket."""

from __future__ import annotations

import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from xenvirtio.channels.unix_socket import UnixSocketChannel
from xenvirtio.errors import UsageError, XenStoreError
from xenvirtio.ids import DomId
from xenvirtio.xenstore.client import Operations, XenStoreClient
from xenvirtio.xenstore.client_core import ClientState, WatchEvent
from xenvirtio.xenstore.profile import ZEPHYR_DOM0
from xenvirtio.xenstore.serve import XenStoreService
from xenvirtio.xenstore.server import XenStoreServer
from xenvirtio.xenstore.snapshot import dump, restore
from xenvirtio.xenstore.wire import MessageType


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "socket"


@pytest.fixture
def service(path: Path) -> Iterator[XenStoreService]:
    with XenStoreService() as running:
        running.listen(path)
        yield running


@pytest.fixture
def client(path: Path, service: XenStoreService) -> Iterator[XenStoreClient]:
    with XenStoreClient.at(path, timeout_s=5) as connected:
        yield connected


def wait_for(condition: Callable[[], bool], timeout_s: float = 5.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_node_operations(client: XenStoreClient) -> None:
    client.write("/a/b", "hello")
    client.write("/a/raw", b"\0\xff")
    client.write("/a/number", 5)
    client.mkdir("/a/dir")
    assert client.read("/a/b") == "hello"
    assert client.read_bytes("/a/raw") == b"\0\xff"
    assert client.read("/a/number") == "5"
    assert client.directory("/a") == ["b", "raw", "number", "dir"]
    assert client.directory("/a/dir") == []
    client.set_permissions("/a", ["n0", "r5"])
    assert client.get_permissions("/a") == ["n0", "r5"]
    client.rm("/a/dir")
    assert client.read_optional("/a/dir") is None
    assert client.exists("/a")
    assert not client.exists("/a/none")


def test_errors_carry_name_operation_and_path(client: XenStoreClient) -> None:
    with pytest.raises(XenStoreError, match="READ /none: ENOENT") as caught:
        client.read("/none")
    assert (caught.value.name, caught.value.operation, caught.value.path) == ("ENOENT", "READ", "/none")
    with pytest.raises(XenStoreError, match="EINVAL"):
        client.read_optional("/a+b")
    with pytest.raises(XenStoreError, match="E2BIG"):
        client.write("/a", b"x" * 4096)


def test_directories_beyond_one_message(client: XenStoreClient, service: XenStoreService) -> None:
    names = [f"a-rather-long-name-{number}" for number in range(700)]
    for name in names:
        client.mkdir(f"/big/{name}")
    assert client.directory("/big") == names


def test_a_directory_that_changes_between_its_parts_is_read_from_the_start() -> None:
    class Scripted(Operations):
        parts = [("0", b"1\0a\0"), ("2", b"2\0\0"), ("0", b"2\0b\0"), ("2", b"2\0c\0\0")]

        def _call(self, kind: MessageType, path: str, *rest: bytes, raw: bytes | None = None) -> bytes:
            if kind == MessageType.DIRECTORY:
                raise XenStoreError("E2BIG", "DIRECTORY", path)
            offset, part = self.parts.pop(0)
            assert rest == (offset.encode(),)
            return part

    assert Scripted().directory("/") == ["b", "c"]


def test_domains(client: XenStoreClient) -> None:
    assert client.get_domain_path(4) == "/local/domain/4"
    client.introduce(4, 100, 3)
    assert client.is_domain_introduced(4)
    client.release(4)
    assert not client.is_domain_introduced(4)
    assert client.control("check") == "OK"


def test_watches(client: XenStoreClient, path: Path) -> None:
    client.watch("/w", "token")
    assert client.next_event(5) == WatchEvent("/w", "token")
    with XenStoreClient.at(path) as other:
        other.write("/w/x", 1)
    assert client.next_event(5) == WatchEvent("/w/x", "token")
    assert client.next_event(0) is None
    with pytest.raises(XenStoreError, match="EEXIST"):
        client.watch("/w", "token")
    client.unwatch("/w", "token")
    client.write("/w/y", 1)
    assert client.next_event(0.05) is None
    with pytest.raises(XenStoreError, match="EINVAL"):
        client.watch("/w+", "token")


def test_events_in_a_selector_loop(client: XenStoreClient) -> None:
    poller = select.poll()
    poller.register(client.fileno(), select.POLLIN)
    client.watch("/w", "t")
    assert poller.poll(5000)
    wait_for(lambda: client.pump() == [WatchEvent("/w", "t")])
    assert client.pump() == []
    assert not poller.poll(0)
    client.write("/w", 1)
    client.read("/w")  # this call has read the event: the descriptor tells all the same
    assert poller.poll(5000)
    wait_for(lambda: client.pump() == [WatchEvent("/w", "t")])


def test_a_transaction_runs_until_it_fits(client: XenStoreClient, path: Path) -> None:
    attempts: list[int] = []

    def increment(store: Operations) -> int:
        attempts.append(1)
        value = int(store.read_optional("/count") or "0")
        if len(attempts) == 1:
            with XenStoreClient.at(path) as other:
                other.write("/count", 41)
        store.write("/count", value + 1)
        return value + 1

    assert client.transact(increment) == 42
    assert client.read("/count") == "42"
    assert len(attempts) == 2


def test_transactions_give_up_in_the_end(client: XenStoreClient) -> None:
    def never(store: Operations) -> None:
        store.read_optional("/x")
        client.write("/x", 1)

    with pytest.raises(XenStoreError, match="EAGAIN"):
        client.transact(never, attempts=3)


def test_an_exception_aborts(client: XenStoreClient, service: XenStoreService) -> None:
    def fail(store: Operations) -> None:
        store.write("/x", 1)
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        client.transact(fail)
    assert client.read_optional("/x") is None
    assert service.call(lambda server: server.open_transactions) == 0


def test_threads_share_a_client(client: XenStoreClient) -> None:
    def work(number: int) -> None:
        for turn in range(50):
            client.write(f"/t/{number}", turn)
            assert client.read(f"/t/{number}") == str(turn)

    waiter = threading.Thread(target=lambda: client.next_event(0.2))
    threads = [waiter, *(threading.Thread(target=work, args=(number,)) for number in range(4))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert client.directory("/t") == sorted(client.directory("/t"), key=client.directory("/t").index)
    assert all(client.read(f"/t/{number}") == "49" for number in range(4))


def test_counting_in_transactions_from_several_threads(client: XenStoreClient) -> None:
    def work() -> None:
        for _ in range(10):
            client.transact(lambda store: store.write("/n", int(store.read_optional("/n") or 0) + 1), attempts=1000)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert client.read("/n") == "30"


def test_a_server_that_comes_late(path: Path) -> None:
    with XenStoreClient.at(path, timeout_s=0.1) as client:
        assert client.state is ClientState.ABSENT
        with pytest.raises(XenStoreError, match="ETIMEDOUT"):
            client.read("/tool")
        with XenStoreService() as service:
            service.listen(path)
            assert client.wait_ready(5)
            assert client.read("/tool") == ""


def test_a_server_that_is_restarted(path: Path) -> None:
    with XenStoreClient.at(path, timeout_s=5) as client:
        first = XenStoreService()
        first.start()
        first.listen(path)
        client.watch("/w", "t")
        client.write("/w/kept", 1)
        while client.next_event(0.05):
            pass
        first.stop()
        wait_for(lambda: client.pump() == [] and client.state is not ClientState.READY)
        server = XenStoreServer(time.monotonic)
        restore(server, first.call(dump))
        with XenStoreService(server) as second:
            second.listen(path)
            assert client.next_event(5) == WatchEvent("/w", "t")
            assert client.read("/w/kept") == "1"
            client.write("/w/new", 1)
            assert client.next_event(5) == WatchEvent("/w/new", "t")


def test_a_restart_in_the_middle_of_a_transaction_starts_it_over(path: Path) -> None:
    services = [XenStoreService()]
    services[0].start()
    services[0].listen(path)

    def action(store: Operations) -> int:
        store.write("/x", len(services))
        if len(services) == 1:
            services[0].stop()
            services.append(XenStoreService())
            services[1].start()
            services[1].listen(path)
        store.write("/y", len(services))
        return len(services)

    with XenStoreClient.at(path, timeout_s=5) as client:
        assert client.transact(action) == 2
        assert (client.read("/x"), client.read("/y")) == ("2", "2")
    services[1].stop()


def test_a_server_without_transactions_gets_the_operations_one_by_one(path: Path) -> None:
    profile = replace(ZEPHYR_DOM0, operations=ZEPHYR_DOM0.operations - {MessageType.TRANSACTION_START})
    with XenStoreService(XenStoreServer(time.monotonic, profile=profile)) as service:
        service.listen(path)
        with XenStoreClient.at(path) as client:
            client.transact(lambda store: store.write("/x", 1))
            assert client.read("/x") == "1"


def test_as_a_guest_over_a_socket_pair(service: XenStoreService, client: XenStoreClient) -> None:
    client.mkdir("/local/domain/7")
    client.set_permissions("/local/domain/7", ["n7"])
    ours, theirs = socket.socketpair()
    service.attach(theirs, DomId(7))
    channels = [UnixSocketChannel(ours)]
    with XenStoreClient(lambda: channels.pop() if channels else None) as guest:
        guest.write("data/x", "mine")
        assert client.read("/local/domain/7/data/x") == "mine"
        with pytest.raises(XenStoreError, match="EACCES"):
            guest.read("/tool")
        service.call(lambda server: server.domain_destroyed(DomId(7)))
        wait_for(lambda: guest.pump() == [] and guest.state is ClientState.ABSENT)
    assert client.read_optional("/local/domain/7") is None


def test_a_server_that_says_nothing_is_left(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as mute:
        mute.bind(str(path))
        mute.listen()
        with XenStoreClient.at(path, timeout_s=0.1) as client:
            assert not client.wait_ready(0.3)


def test_a_closed_client_says_so(client: XenStoreClient) -> None:
    client.close()
    client.close()
    for use in (lambda: client.read("/"), lambda: client.pump(), lambda: client.next_event(1)):
        with pytest.raises(UsageError):
            use()


def test_closing_ends_calls_that_wait(client: XenStoreClient) -> None:
    outcome: list[BaseException] = []

    def wait() -> None:
        try:
            client.next_event(30)
        except UsageError as error:
            outcome.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    time.sleep(0.05)
    client.close()
    thread.join(5)
    assert outcome
