"""Sequences and errors on the device nodes, with a fake kernel behind libc; the real one is the lab's."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from xenvirtio.errors import HypervisorError
from xenvirtio.ids import DomId, EventPort, Gfn, GrantRef, RemotePort, ServerId, Spi
from xenvirtio.xen import libc
from xenvirtio.xen.capabilities import Hypervisor
from xenvirtio.xen.linux import (
    LinuxHypervisor,
    device_model,
    dm_op,
    evtchn,
    foreign_memory,
    gntalloc,
    gntdev,
    node,
    privcmd,
)
from xenvirtio.xen.linux.gntalloc import ALLOC_GREF, DEALLOC_GREF, AllocGref, LinuxGrantAllocator

GUEST = DomId(3)
NAMES = {
    privcmd.DM_OP: "dm_op",
    privcmd.MMAPBATCH_V2: "mmapbatch",
    privcmd.RESTRICT: "restrict",
    privcmd.MMAP_RESOURCE: "mmap_resource",
    privcmd.IRQFD: "irqfd",
    evtchn.RESTRICT_DOMID: "restrict_domid",
    evtchn.BIND_INTERDOMAIN: "bind",
    evtchn.NOTIFY: "notify",
    gntdev.MAP_GRANT_REF: "map",
    gntdev.UNMAP_GRANT_REF: "unmap",
    gntdev.GRANT_COPY: "copy",
    ALLOC_GREF: "alloc",
    DEALLOC_GREF: "dealloc",
}


class FakeKernel:
    """Stands in for `libc` in the modules under test: records the calls, fails the ones it is told to fail."""

    def __getattr__(self, name: str) -> object:
        return getattr(libc, name)

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.failing: dict[str, int] = {}
        self.answers: dict[str, Callable[[int], int]] = {}

    def ioctl(self, descriptor: int, request: int, argument: int) -> int:
        return self._called(NAMES[request], argument)

    def mmap(self, length: int, prot: int, flags: int, descriptor: int = -1, offset: int = 0, address: int = 0) -> int:
        self._called(f"mmap {length:#x} prot {prot} at {offset:#x}", 0, "mmap")
        return 0x10000

    def munmap(self, address: int, length: int) -> None:
        self._called(f"munmap {length:#x}", 0, "munmap")

    def _called(self, what: str, argument: int, name: str | None = None) -> int:
        self.calls.append(what)
        error = self.failing.get(name or what)
        if error is not None:
            raise OSError(error, os.strerror(error))
        answer = self.answers.get(name or what)
        return 0 if answer is None else answer(argument)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> FakeKernel:
    kernel = FakeKernel()
    for module in (node, privcmd, device_model, foreign_memory, gntdev, gntalloc):
        monkeypatch.setattr(module, "libc", kernel)
    return kernel


@pytest.fixture
def directory(tmp_path: Path) -> str:
    for name in ("privcmd", "evtchn", "gntdev", "gntalloc"):
        os.mkfifo(tmp_path / name)  # what is written to evtchn can be read back
    return str(tmp_path)


@pytest.fixture
def hypervisor(kernel: FakeKernel, directory: str) -> Hypervisor:
    return LinuxHypervisor(directory)


def refused(call: Callable[..., object], *arguments: object) -> HypervisorError:
    with pytest.raises(HypervisorError) as caught:
        call(*arguments)
    return caught.value


def test_a_machine_without_xen(tmp_path: Path) -> None:
    error = refused(LinuxHypervisor(str(tmp_path)).open_grants)
    assert error.errno == errno.ENOENT
    assert "not on Xen" in str(error)


def test_grants_are_unmapped_before_they_are_forgotten(hypervisor: Hypervisor, kernel: FakeKernel) -> None:
    def announce(argument: int) -> int:
        head = gntdev.MapGrantRef.from_address(argument)
        references = (gntdev.GrantReference * head.count).from_address(argument + 16)
        assert [(r.domid, r.ref) for r in references] == [(3, 8), (3, 9)]
        head.index = 0x5000
        return 0

    def forget(argument: int) -> int:
        request = gntdev.UnmapGrantRef.from_address(argument)
        assert (request.index, request.count) == (0x5000, 2)
        return 0

    kernel.answers = {"map": announce, "unmap": forget}
    grants = hypervisor.open_grants()
    mapping = grants.map(GUEST, [GrantRef(8), GrantRef(9)], writable=False)
    mapping.close()
    mapping.close()
    assert kernel.calls == ["map", "mmap 0x2000 prot 1 at 0x5000", "munmap 0x2000", "unmap"]
    grants.close()


def test_a_refused_grant_mapping_is_forgotten_too(hypervisor: Hypervisor, kernel: FakeKernel) -> None:
    kernel.failing = {"mmap": errno.EINVAL}
    grants = hypervisor.open_grants()
    error = refused(lambda: grants.map(GUEST, [GrantRef(8)], writable=True))
    assert (error.errno, error.domid) == (errno.EINVAL, GUEST)
    assert "not granted" in str(error)
    assert kernel.calls == ["map", "mmap 0x1000 prot 3 at 0x0", "unmap"]
    grants.close()


def test_closing_gntdev_unmaps_what_is_left(hypervisor: Hypervisor, kernel: FakeKernel) -> None:
    grants = hypervisor.open_grants()
    mapping = grants.map(GUEST, [GrantRef(8)], writable=True)
    grants.close()
    mapping.close()
    assert kernel.calls[2:] == ["munmap 0x1000", "unmap"]


def test_privcmd_is_restricted_first_and_goes_on_where_it_cannot_be(hypervisor: Hypervisor, kernel: FakeKernel) -> None:
    for error in (errno.EPERM, errno.ENOTTY, errno.EINVAL):
        kernel.failing = {"restrict": error}
        model = hypervisor.open_device_model(GUEST)
        model.nr_vcpus()
        assert kernel.calls == ["restrict", "dm_op"]
        kernel.calls.clear()
        model.close()


def dm_op_request(argument: int) -> dm_op.DmOp:
    call = privcmd.DmOpCall.from_address(argument)
    buffer = privcmd.DmOpBuffer.from_address(call.ubufs)
    assert (call.dom, call.num, buffer.size) == (GUEST, 1, 32)
    return dm_op.DmOp.from_address(buffer.uptr)


def test_results_come_back_in_the_request(hypervisor: Hypervisor, kernel: FakeKernel) -> None:
    def answer(argument: int) -> int:
        request = dm_op_request(argument)
        if request.op == dm_op.Op.NR_VCPUS:
            request.u.nr_vcpus.vcpus = 4
        else:
            request.u.create_ioreq_server.id = 5
        return 0

    kernel.answers = {"dm_op": answer}
    model = hypervisor.open_device_model(GUEST)
    assert (model.nr_vcpus(), model.create_ioreq_server()) == (4, 5)
    model.close()


def test_the_buffers_of_an_interrupt_are_built_once(hypervisor: Hypervisor, kernel: FakeKernel) -> None:
    seen: list[tuple[int, bytes]] = []

    def record(argument: int) -> int:
        seen.append((argument, bytes(dm_op_request(argument))))
        return 0

    kernel.answers = {"dm_op": record}
    model = hypervisor.open_device_model(GUEST)
    model.set_irq_level(Spi(33), 1)
    model.set_irq_level(Spi(33), 1)
    assert seen[0] == seen[1]
    assert seen[0][1] == bytes(dm_op.set_irq_level(33, 1))
    model.close()


@pytest.mark.parametrize(
    ("error", "hint"),
    [(errno.EOPNOTSUPP, "CONFIG_IOREQ_SERVER"), (errno.EPERM, "SILO"), (errno.ENOSPC, "all 8"), (errno.ESRCH, "exist")],
)
def test_create_says_what_is_wrong(hypervisor: Hypervisor, kernel: FakeKernel, error: int, hint: str) -> None:
    kernel.failing = {"dm_op": error}
    model = hypervisor.open_device_model(GUEST)
    assert hint in str(refused(model.create_ioreq_server))
    assert "target" in str(refused(model.nr_vcpus)) or error != errno.EPERM
    model.close()


def test_irqfd_or_none_where_the_kernel_has_none(hypervisor: Hypervisor, kernel: FakeKernel) -> None:
    model = hypervisor.open_device_model(GUEST)
    descriptor = model.open_irqfd(Spi(33))
    assert descriptor is not None
    os.eventfd_write(descriptor, 1)
    os.close(descriptor)
    for error in (errno.EOPNOTSUPP, errno.ENOTTY, errno.ENOSYS):
        kernel.failing = {"irqfd": error}
        assert model.open_irqfd(Spi(33)) is None
    kernel.failing = {"irqfd": errno.EPERM}
    assert refused(model.open_irqfd, Spi(33)).errno == errno.EPERM
    model.close()


def test_a_refused_page_is_unmapped(hypervisor: Hypervisor, kernel: FakeKernel) -> None:
    kernel.failing = {"mmap_resource": errno.ENOENT}
    model = hypervisor.open_device_model(GUEST)
    assert refused(model.map_ioreq_page, ServerId(2)).errno == errno.ENOENT
    assert kernel.calls[1:] == ["mmap 0x1000 prot 3 at 0x0", "mmap_resource", "munmap 0x1000"]
    model.close()


def test_frames_report_their_own_errors(hypervisor: Hypervisor, kernel: FakeKernel) -> None:
    def answer(argument: int) -> int:
        request = privcmd.MmapBatchV2.from_address(argument)
        assert list((ctypes.c_uint64 * request.num).from_address(request.arr)) == [0x40000, 0x2000]
        (ctypes.c_int32 * request.num).from_address(request.err)[1] = -errno.EINVAL
        return 0

    kernel.answers = {"mmapbatch": answer}
    foreign = hypervisor.open_foreign_memory(GUEST)
    mapping, errors = foreign.map_frames(GUEST, [Gfn(0x40000), Gfn(0x2000)], writable=True)
    assert errors == [0, -errno.EINVAL]
    mapping.close()
    assert kernel.calls[-1] == "munmap 0x2000"
    foreign.close()


def test_events_are_read_and_written_back(hypervisor: Hypervisor, kernel: FakeKernel) -> None:
    events = hypervisor.open_event_channels(GUEST)
    kernel.answers = {"bind": lambda _: 7}
    assert events.bind_interdomain(GUEST, RemotePort(4)) == 7
    assert events.read() == []
    events.unmask([EventPort(7), EventPort(8)])
    assert events.read() == [7, 8]
    events.notify(EventPort(7))
    assert kernel.calls == ["restrict_domid", "bind", "notify"]
    events.close()
    events.close()


def test_event_channels_of_dom0_are_not_restricted(hypervisor: Hypervisor, kernel: FakeKernel) -> None:
    hypervisor.open_event_channels(DomId(0)).close()
    assert kernel.calls == []


def test_pages_granted_to_another_domain(kernel: FakeKernel, directory: str) -> None:
    def allocate(argument: int) -> int:
        head = AllocGref.from_address(argument)
        assert (head.domid, head.flags, head.count) == (0, 1, 2)
        head.index = 0x3000
        (ctypes.c_uint32 * 2).from_address(argument + 16)[:] = [20, 21]
        return 0

    kernel.answers = {"alloc": allocate}
    allocator = LinuxGrantAllocator(f"{directory}/gntalloc")
    pages = allocator.allocate(DomId(0), 2, writable=True)
    assert pages.references == [20, 21]
    allocator.close()
    assert kernel.calls == ["alloc", "mmap 0x2000 prot 3 at 0x3000", "munmap 0x2000", "dealloc"]
