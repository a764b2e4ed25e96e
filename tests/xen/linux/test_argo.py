"""Argo's hypercalls behind a fake kernel; the keeper is a real process, its hypercall an ioctl on a file."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from xenvirtio.errors import HypervisorError, ResourceError, UsageError
from xenvirtio.ids import ArgoPort, DomId, Gfn
from xenvirtio.xen import libc
from xenvirtio.xen.capabilities import ArgoAddress
from xenvirtio.xen.linux import argo, node
from xenvirtio.xen.linux.argo import LinuxArgo
from xenvirtio.xen.linux.argo_keeper import HOLD, ORDER
from xenvirtio.xen.linux.argo_keeping import Keeper
from xenvirtio.xen.linux.frames import frames_of
from xenvirtio.xen.linux.hypercall import HYPERCALL, PrivcmdHypercall
from xenvirtio.xen.linux.privcmd_gate import would_block

PORT, PEER = ArgoPort(0x10001), DomId(3)


class FakeXen:
    """Answers hypercall 39 as asked for, and keeps what came in."""

    def __init__(self) -> None:
        self.seen: list[tuple[object, ...]] = []
        self.failing: dict[int, int] = {}

    def __getattr__(self, name: str) -> object:
        return getattr(libc, name)

    def ioctl(self, descriptor: int, request: int, argument: int) -> int:
        assert request == HYPERCALL
        call = PrivcmdHypercall.from_address(argument)
        assert call.op == 39
        op, first, second, third, fourth = list(call.arg)
        if error := self.failing.get(op):
            raise OSError(error, os.strerror(error))
        if op == 1:
            gfns = ctypes.string_at(second, 8 * third)
            self.seen.append(("register", *struct.unpack("<IHHI", ctypes.string_at(first, 12)), len(gfns), fourth))
        elif op == 2:
            self.seen.append(("unregister", *struct.unpack("<IHH", ctypes.string_at(first, 8)), second, third, fourth))
        elif op == 3:
            assert third == 1
            address, length, pad = struct.unpack("<QII", ctypes.string_at(second, 16))
            head = struct.unpack("<IHHIHH", ctypes.string_at(first, 16))
            self.seen.append(("send", *head, pad, fourth, ctypes.string_at(address, length)))
        elif first:
            self._describe(first)
        return 0

    def _describe(self, where: int) -> None:
        count, _ = struct.unpack("<II", ctypes.string_at(where, 8))
        for index in range(count):
            at = where + 8 + 20 * index
            self.seen.append(("asked", *struct.unpack("<IHHHHII", ctypes.string_at(at, 20))))
            ctypes.memmove(at + 8, struct.pack("<H", 13), 2)
            ctypes.memmove(at + 16, struct.pack("<I", 65440), 4)


@pytest.fixture
def xen(monkeypatch: pytest.MonkeyPatch) -> FakeXen:
    xen = FakeXen()
    monkeypatch.setattr(node, "libc", xen)
    monkeypatch.setattr(argo, "would_block", lambda: False)
    monkeypatch.setattr(argo, "frames_of", lambda address, count: [Gfn(n) for n in range(count)])
    return xen


@pytest.fixture
def directory(tmp_path: Path) -> str:
    (tmp_path / "privcmd").touch()
    return str(tmp_path)


@pytest.fixture
def linux(xen: FakeXen, directory: str) -> Iterator[LinuxArgo]:
    linux = LinuxArgo(directory)
    yield linux
    linux.close()


def test_a_ring_is_registered_once_and_unregistered(linux: LinuxArgo, xen: FakeXen) -> None:
    ring = linux.register_ring(PORT, PEER, 65472)
    assert ring.length_bytes == 16 * 4096
    ctypes.memset(ring.address, 1, ring.length_bytes)
    assert xen.seen == [("register", PORT, PEER, 0, 65472, 16 * 8, 1)]
    ring.close()
    ring.close()
    assert xen.seen[1:] == [("unregister", PORT, PEER, 0, 0, 0, 0)]


def test_closing_unregisters_what_is_left(linux: LinuxArgo, xen: FakeXen) -> None:
    linux.register_ring(PORT, PEER, 4032)
    linux.close()
    linux.close()
    assert [row[0] for row in xen.seen] == ["register", "unregister"]
    with pytest.raises(UsageError):
        linux.notify()


def test_a_ring_that_went_with_its_partner_closes_quietly(linux: LinuxArgo, xen: FakeXen) -> None:
    ring = linux.register_ring(PORT, PEER, 4032)
    xen.failing[2] = errno.ENOENT
    ring.close()
    with pytest.raises(HypervisorError, match="no such ring"):
        linux.unregister_ring(PORT, PEER)


def test_a_refused_ring_is_forgotten(linux: LinuxArgo, xen: FakeXen) -> None:
    xen.failing[1] = errno.EEXIST
    with pytest.raises(HypervisorError, match="has that ring already"):
        linux.register_ring(PORT, PEER, 4032)
    xen.failing.clear()
    linux.close()
    assert xen.seen == []


@pytest.mark.parametrize("length", [0, 5, 65440, 300_000])
def test_a_message(linux: LinuxArgo, xen: FakeXen, length: int) -> None:
    message = os.urandom(length)
    linux.send(ArgoPort(7), ArgoAddress(PEER, PORT), 0xFFFFFFFF, message)
    assert xen.seen == [("send", 7, argo.DOMID_ANY, 0, PORT, PEER, 0, 0, 0xFFFFFFFF, message)]


def test_notify_asks_about_rings(linux: LinuxArgo, xen: FakeXen) -> None:
    assert linux.notify() == []
    states = linux.notify([(ArgoAddress(PEER, PORT), 100)] * 3)
    assert xen.seen == [("asked", PORT, PEER, 0, 0, 0, 100, 0)] * 3
    assert [(s.exists, s.is_empty, s.has_room, s.message_max_bytes) for s in states] == [(True, True, True, 65440)] * 3
    with pytest.raises(HypervisorError):
        linux.notify([(ArgoAddress(PEER, PORT), 100)] * 257)


@pytest.mark.parametrize(
    ("error", "hint"),
    [
        (errno.ENOSYS, "CONFIG_ARGO=y"),
        (errno.EOPNOTSUPP, "argo=1"),
        (errno.EPERM, "xen_privcmd.unrestricted=1"),
    ],
)
def test_opening_says_what_is_missing(xen: FakeXen, directory: str, error: int, hint: str) -> None:
    xen.failing[4] = error
    with pytest.raises(HypervisorError, match=hint):
        LinuxArgo(directory)


def test_a_guest_without_xenstore_does_not_open_privcmd(directory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(argo, "would_block", lambda: True)
    monkeypatch.setattr(argo, "Hypercalls", pytest.fail)
    with pytest.raises(HypervisorError, match=r"hang here.*xen_privcmd\.unrestricted=1"):
        LinuxArgo(directory)


def test_a_machine_without_xen(tmp_path: Path) -> None:
    with pytest.raises(HypervisorError, match="not on Xen"):
        LinuxArgo(str(tmp_path))


# -- may privcmd be opened


@pytest.mark.parametrize(
    ("files", "blocks"),
    [
        ({}, True),
        ({"proc/interrupts": "   CPU0\n 14:  0  xen-dyn  1 Edge  xenstore_late_init\n"}, True),
        ({"proc/interrupts": "   CPU0\n 14:  0  xen-dyn  1 Edge  xenbus\n"}, False),
        ({"proc/xen/capabilities": "control_d\n"}, False),
        ({"sys/hypervisor/properties/features": "00000000,00002b05\n"}, False),
        ({"sys/hypervisor/properties/features": "00000000,00002705\n"}, True),
        ({"sys/hypervisor/properties/features": "rubbish!\n"}, True),
        ({"proc/cmdline": "quiet xen_privcmd.unrestricted=1\n"}, False),
        ({"proc/cmdline": "quiet xen-privcmd.unrestricted\n"}, False),
        ({"proc/cmdline": "quiet xen_privcmd.unrestricted=0 xen_privcmd.unrestricted_not=1\n"}, True),
    ],
)
def test_when_privcmd_would_block(tmp_path: Path, files: dict[str, str], blocks: bool) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert would_block(tmp_path) is blocks


# -- frames


def test_frames_are_read_off_pagemap(tmp_path: Path) -> None:
    page = os.sysconf("SC_PAGE_SIZE")
    entries = [0, (1 << 63) | 0x1234, (1 << 63) | (1 << 55) | 0x99]
    (tmp_path / "pagemap").write_bytes(b"".join(struct.pack("<Q", entry) for entry in entries))
    frames = frames_of(page, 2 * (page // 4096), str(tmp_path / "pagemap"))
    assert frames[0] == 0x1234 * (page // 4096)
    assert frames[page // 4096] == 0x99 * (page // 4096)


@pytest.mark.parametrize(("entry", "why"), [(0, "not in memory"), (1 << 63, "CAP_SYS_ADMIN")])
def test_frames_that_cannot_be_known(tmp_path: Path, entry: int, why: str) -> None:
    (tmp_path / "pagemap").write_bytes(struct.pack("<Q", entry))
    with pytest.raises(ResourceError, match=why):
        frames_of(0, 1, str(tmp_path / "pagemap"))


# -- the keeper

SPY = """
import argo_keeper, sys
argo_keeper.unregister = lambda privcmd, ring: open(sys.argv[2], 'a').write(f'{ring[0]:x} {ring[1]}\\n')
argo_keeper.main(int(sys.argv[1]), 0)
"""


def keep(tmp_path: Path) -> tuple[Keeper, Path]:
    """Start the real keeper, with its hypercall replaced by a line in a file."""
    directory = Path(argo.__file__).parent
    program, log = tmp_path / "spy.py", tmp_path / "log"
    log.touch()
    spy = SPY.replace("sys.argv[2]", repr(str(log)))
    program.write_text(f"import sys; sys.path.insert(0, {str(directory)!r})\n{spy}")
    return Keeper(os.open(log, os.O_RDONLY), program), log


def ring_file() -> int:
    file = os.memfd_create("ring")
    os.ftruncate(file, 4096)
    return file


def wait_for(log: Path, text: str) -> None:
    deadline_s = time.monotonic() + 20
    while log.read_text() != text:
        assert time.monotonic() < deadline_s, log.read_text()
        time.sleep(0.02)


def test_the_keeper_unregisters_what_a_dead_process_left(tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:
        keeper, _ = keep(tmp_path)
        keeper.hold(ring_file(), ArgoPort(0x10), DomId(1))
        keeper.hold(ring_file(), ArgoPort(0x20), DomId(2))
        keeper.forget(ArgoPort(0x10), DomId(1))
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    wait_for(tmp_path / "log", "20 2\n")


def test_the_keeper_has_nothing_to_do_after_an_orderly_end(tmp_path: Path) -> None:
    keeper, log = keep(tmp_path)
    keeper.hold(ring_file(), PORT, PEER)
    keeper.forget(PORT, PEER)
    keeper.close()
    keeper.close()
    assert log.read_text() == ""


def test_the_keeper_outlives_the_signals_that_end_its_owner(tmp_path: Path) -> None:
    keeper, log = keep(tmp_path)
    keeper.hold(ring_file(), PORT, PEER)
    assert keeper.pid is not None
    assert os.getsid(keeper.pid) != os.getsid(0)
    keeper.close()
    wait_for(log, f"{PORT:x} {PEER}\n")


def test_a_keeper_that_is_gone_is_no_error(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    keeper, _ = keep(tmp_path)
    assert keeper.pid is not None
    os.kill(keeper.pid, signal.SIGKILL)
    os.waitpid(keeper.pid, 0)
    keeper.hold(ring_file(), PORT, PEER)
    assert "a kill would leave them registered" in caplog.text
    keeper.close()


def test_both_sides_of_the_keeper_mean_the_same() -> None:
    from xenvirtio.xen.linux import argo_keeping

    assert (argo_keeping.ORDER.format, argo_keeping.HOLD) == (ORDER.format, HOLD)
