"""Backends in processes of their own, killed with SIGKILL while the guest goes on."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from xenvirtio.ids import ServerId
from xenvirtio.xen.emulated import Domain, EmulatedHost, connect_emulated

from .conftest import GuestThread
from .register_backend import BASE, RegisterBackend

Run = Callable[[Callable[[], object]], GuestThread]
PROGRAM = Path(__file__).with_name("register_backend.py")


class BackendProcesses:
    """Starts register_backend.py as a program."""

    def __init__(self, socket_path: Path) -> None:
        self._socket_path = socket_path
        self._started: list[subprocess.Popen[str]] = []

    def start(self, domain: Domain, server: int | str, *mode: str) -> tuple[subprocess.Popen[str], int]:
        """Start a backend and wait until it serves; return it and its server's number."""
        command = [sys.executable, str(PROGRAM), str(self._socket_path), str(domain.domid), str(server), *mode]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self._started.append(process)
        word, number = self.line(process).split()
        assert word == "ready"
        return process, int(number)

    def line(self, process: subprocess.Popen[str]) -> str:
        assert process.stdout is not None
        return process.stdout.readline().strip()

    def end(self) -> None:
        for process in self._started:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()


@pytest.fixture
def processes(host: EmulatedHost, tmp_path: Path) -> Iterator[BackendProcesses]:
    host.listen(tmp_path / "xen")
    processes = BackendProcesses(tmp_path / "xen")
    yield processes
    processes.end()


def test_a_killed_backend_is_succeeded_and_the_guest_notices_a_pause_only(
    processes: BackendProcesses, domain: Domain, run_guest: Run
) -> None:
    """Both vCPUs wait in state 2 when their backend dies; the next process adopts the server and answers."""
    killed, server = processes.start(domain, "new", "stall")
    first, second = domain.vcpus  # the first waits in its INVALIDATE
    guests = [run_guest(lambda: first.mmio_write(BASE, 4, 5)), run_guest(lambda: second.mmio_read(BASE + 4, 4))]
    assert [processes.line(killed), processes.line(killed)] == ["stalled", "stalled"]
    killed.kill()
    killed.wait()
    assert all(vcpu.is_waiting for vcpu in domain.vcpus)
    for _ in range(3):
        process, same = processes.start(domain, server)
        assert same == server
        for guest in guests:
            guest.join()
        domain.vcpu(0).mmio_write(BASE, 4, 6)
        assert domain.vcpu(1).mmio_read(BASE, 4) == 6
        process.kill()
        process.wait()
        guests = [run_guest(lambda: domain.vcpu(1).mmio_read(BASE, 4))]
    processes.start(domain, server)
    assert guests[0].join() == 0


def test_what_a_killed_process_held_is_free_for_the_next_to_connect(
    processes: BackendProcesses, domain: Domain, tmp_path: Path
) -> None:
    for _ in range(3):
        killed, server = processes.start(domain, "new")
        killed.kill()
        killed.wait()
        hypervisor = connect_emulated(tmp_path / "xen")
        heir = RegisterBackend(hypervisor, domain.domid, adopt=ServerId(server)).start()
        domain.vcpu(1).mmio_write(BASE, 4, 6)
        assert heir.registers == {BASE: 6}
        heir.model.destroy_ioreq_server(heir.server)
        heir.close()
        hypervisor.close()


def test_a_process_serves_a_guest(processes: BackendProcesses, host: EmulatedHost, domain: Domain) -> None:
    processes.start(domain, "new")
    for value in range(100):
        domain.vcpu(0).mmio_write(BASE, 4, value)
        assert domain.vcpu(0).mmio_read(BASE, 4) == value
    counted = host.counters.snapshot()
    assert counted["mmio_exits"] == 200
    assert counted["invalidates"] == 1
    assert counted["hypercall.create_ioreq_server"] == 1
