"""Before XenStore is there: what is judged by, how it is waited for, and that nothing is touched meanwhile."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from xenvirtio.channels.xenbus_device import KernelStore
from xenvirtio.xenstore import connect
from xenvirtio.xenstore.connect import Presence, look
from xenvirtio.xenstore.open import StoreNotReadyError, open_store, wait_store
from xenvirtio.xenstore.serve import XenStoreService
from xenvirtio.xenstore.server import XenStoreServer

HEAD = "           CPU0\n 12:   0   GICv3   27 Level   arch_timer\n"
LATE_LINE = HEAD + " 14:   0   xen-dyn   1 Edge   xenstore_late_init\n"
READY_LINE = HEAD + " 14:   7   xen-dyn   1 Edge   xenbus\n"
ABSENT, LATE, READY = KernelStore


def machine(root: Path, interrupts: str | None, *, xen: bool = True) -> Path:
    (root / "proc").mkdir()
    if xen:
        (root / "proc/xen").mkdir()
    if interrupts is not None:
        (root / "proc/interrupts").write_text(interrupts)
    return root


@pytest.mark.parametrize(
    ("interrupts", "xen", "state", "reason"),
    [
        (READY_LINE, True, READY, "the kernel is connected"),
        (READY_LINE + LATE_LINE, True, READY, "the kernel is connected"),
        (LATE_LINE, True, LATE, "waits for the control domain"),
        (HEAD, True, ABSENT, "no xen,enhanced, or no-xenstore"),
        (None, True, ABSENT, "no-xenstore"),
        (HEAD, False, ABSENT, "does not run on Xen"),
    ],
)
def test_a_guest(tmp_path: Path, interrupts: str | None, xen: bool, state: KernelStore, reason: str) -> None:
    presence = look(environment={"XENSTORED_RUNDIR": str(tmp_path)}, root=machine(tmp_path, interrupts, xen=xen))
    assert presence.state is state
    assert reason in presence.reason


def test_a_named_server_is_late_until_it_listens(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    root = machine(tmp_path, HEAD)
    assert look(path, {}, root).state is LATE
    assert look(None, {"XENSTORED_PATH": str(path)}, root).state is LATE
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        assert look(path, {}, root) == Presence(LATE, f"nobody listens at {path}")
        listener.listen()
        assert look(path, {}, root) == Presence(READY, f"a server listens at {path}")
        assert look(None, {"XENSTORED_RUNDIR": str(tmp_path)}, root).state is READY


def test_a_named_device_is_judged_by_the_kernel(tmp_path: Path) -> None:
    (tmp_path / "xenbus").touch()
    assert look(tmp_path / "xenbus", {}, machine(tmp_path, LATE_LINE)).state is LATE


class Clock:
    """Time passes by sleeping alone; each look takes the next state of a script."""

    def __init__(self, script: Iterable[KernelStore]) -> None:
        self.now_s = 0.0
        self.pauses: list[float] = []
        self._script: Iterator[KernelStore] = iter(script)
        self._last = ABSENT

    def look(self, path: Path | None) -> Presence:
        self._last = next(self._script, self._last)
        return Presence(self._last, "so it says")

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.pauses.append(seconds)
        self.now_s += seconds

    def wait(self, timeout_s: float) -> Presence:
        return wait_store(timeout_s, look=self.look, clock=lambda: self.now_s, sleep=self.sleep)


def test_ready_at_once() -> None:
    clock = Clock([READY])
    assert clock.wait(0).state is READY
    assert clock.pauses == []


def test_absent_fails_soon_whatever_the_patience() -> None:
    clock = Clock([ABSENT])
    with pytest.raises(StoreNotReadyError, match="no XenStore: so it says") as raised:
        clock.wait(3600)
    assert raised.value.state is ABSENT
    assert 0.5 <= clock.now_s < 0.6


def test_late_waits_less_and_less_often() -> None:
    clock = Clock([LATE])
    with pytest.raises(StoreNotReadyError, match="not there yet after 60 s") as raised:
        clock.wait(60)
    assert raised.value.state is LATE
    assert clock.now_s == pytest.approx(60)
    assert clock.pauses[:5] == [0.05, 0.1, 0.2, 0.4, 0.8]
    assert max(clock.pauses) == 1.0
    assert len(clock.pauses) < 70


def test_late_then_ready() -> None:
    clock = Clock([LATE, LATE, LATE, READY])
    assert clock.wait(60).state is READY
    assert clock.now_s == pytest.approx(0.35)


def test_the_moment_between_the_two_handlers_is_not_absence() -> None:
    clock = Clock([LATE, LATE, ABSENT, ABSENT, READY])
    assert clock.wait(60).state is READY
    clock = Clock([ABSENT, ABSENT, LATE])  # looked in that moment first
    with pytest.raises(StoreNotReadyError) as raised:
        clock.wait(0)
    assert raised.value.state is LATE


def test_nothing_is_opened_while_it_is_late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = tmp_path / "xenbus"
    device.touch()
    monkeypatch.setattr(connect, "XenbusDevice", lambda path: pytest.fail("opened"))
    with pytest.raises(StoreNotReadyError):  # this machine's kernel has no XenStore
        open_store(0.0, device)


def serve(path: Path) -> XenStoreService:
    service = XenStoreService(XenStoreServer(time.monotonic))
    service.listen(path)
    service.start()
    return service


def test_a_client_of_a_server_that_comes_later(tmp_path: Path) -> None:
    started: list[XenStoreService] = []
    timer = threading.Timer(0.3, lambda: started.append(serve(tmp_path / "socket")))
    timer.start()
    with open_store(20, tmp_path / "socket") as client:
        client.write("/a", "b")
        assert client.read("/a") == "b"
    timer.join()
    started[0].stop()


def test_a_server_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xenvirtio.xenstore.open.ANSWER_S", 0.1)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        listener.listen()
        with pytest.raises(StoreNotReadyError, match="the server does not answer"):
            open_store(0.0, tmp_path / "socket")


def test_a_client_survives_the_servers_restart(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    service = serve(path)
    with open_store(5, path) as client:
        client.watch("/a", "token")
        assert client.next_event(5) is not None
        service.stop()
        path.unlink(missing_ok=True)
        service = serve(path)
        assert client.wait_ready(20)
        assert client.next_event(20) is not None  # every watch fires: look again
        client.write("/a", "again")
        assert client.read("/a") == "again"
    service.stop()
