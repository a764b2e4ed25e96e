from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from xenvirtio.ids import DomId
from xenvirtio.xen.capabilities import Hypervisor
from xenvirtio.xen.emulated import Domain, EmulatedHost, EmulatedHypervisor, VcpuStopped, connect_emulated

from .register_backend import RegisterBackend


@pytest.fixture
def host() -> Iterator[EmulatedHost]:
    with EmulatedHost() as host:
        yield host


@pytest.fixture
def domain(host: EmulatedHost) -> Domain:
    return host.create_domain(vcpus=2, memory_bytes=4 << 20)


@pytest.fixture
def open_hypervisor(
    request: pytest.FixtureRequest, host: EmulatedHost, tmp_path: Path
) -> Iterator[Callable[[int], EmulatedHypervisor]]:
    """Opens backends that live in a given domain, over the transport of the test's parameter."""
    opened: list[EmulatedHypervisor] = []
    host.listen(tmp_path / "xen")

    def open_one(domid: int = 0) -> EmulatedHypervisor:
        if request.node.callspec.params["transport"] == "direct":
            opened.append(host.open_hypervisor(DomId(domid)))
        else:
            opened.append(connect_emulated(tmp_path / "xen", DomId(domid)))
        return opened[-1]

    yield open_one
    for hypervisor in opened:
        hypervisor.close()


@pytest.fixture(params=["direct", "socket"])
def transport(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def hypervisor(transport: str, open_hypervisor: Callable[[], EmulatedHypervisor]) -> Hypervisor:
    return open_hypervisor()


@pytest.fixture
def backend(hypervisor: Hypervisor, domain: Domain) -> Iterator[RegisterBackend]:
    backend = RegisterBackend(hypervisor, domain.domid)
    yield backend
    backend.close()


class GuestThread:
    """A piece of a guest program; ends quietly with its domain."""

    def __init__(self, body: Callable[[], object]) -> None:
        self.result: object = None
        self.error: BaseException | None = None
        self._body = body
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            self.result = self._body()
        except VcpuStopped as error:
            self.error = error

    def join(self) -> object:
        self.thread.join(5)
        assert not self.thread.is_alive(), "the guest is blocked"
        return self.result


@pytest.fixture
def run_guest() -> Callable[[Callable[[], object]], GuestThread]:
    return GuestThread


def wait_until(condition: Callable[[], bool], timeout_s: float = 5.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        with contextlib.suppress(InterruptedError):
            time.sleep(0.001)
