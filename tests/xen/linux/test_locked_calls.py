"""domctl and sysctl: layouts against compiled headers, and every known release played by a Xen made of bytes."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from xenvirtio.errors import HypervisorError
from xenvirtio.ids import DomId, Gfn, GrantRef
from xenvirtio.xen import libc
from xenvirtio.xen.capabilities import DomainControl, HvmParam, XenVersion
from xenvirtio.xen.linux import LinuxHypervisor, hypercall, locked_calls, node, privcmd, stable_calls
from xenvirtio.xen.linux.locked_calls import LAYOUTS, DomainList, DomainRecord, Domctl, Sysctl
from xenvirtio.xen.versions import KNOWN_RELEASES

Measure = Callable[[str, list[str]], list[int]]

PREAMBLE = """#include <stdint.h>
#define __XEN_TOOLS__ 1
#include <xen/xen.h>
#include <xen/domctl.h>
#include <xen/sysctl.h>
#include <xen/hvm/hvm_op.h>
#include <xen/hvm/params.h>
#include <xen/memory.h>
#include <xen/grant_table.h>"""


def test_a_row_for_every_known_release() -> None:
    assert tuple(LAYOUTS) == KNOWN_RELEASES


def test_layouts_of_the_installed_headers(measure: Measure) -> None:
    record = [name for name, *_ in DomainRecord._fields_]
    expressions = [f"offsetof(struct xen_domctl_getdomaininfo, {name})" for name in record]
    expected = [getattr(DomainRecord, name).offset for name in record]
    expressions += [f"offsetof(struct xen_sysctl_getdomaininfolist, {name})" for name, *_ in DomainList._fields_]
    expected += [getattr(DomainList, name).offset for name, *_ in DomainList._fields_]
    for expression, value in {
        "offsetof(struct xen_domctl_getdomaininfo, arch_config)": ctypes.sizeof(DomainRecord),
        "sizeof(struct xen_domctl)": ctypes.sizeof(Domctl),
        "offsetof(struct xen_domctl, domain)": 8,
        "offsetof(struct xen_domctl, u)": Domctl.arguments.offset,
        "sizeof(struct xen_sysctl)": ctypes.sizeof(Sysctl),
        "offsetof(struct xen_sysctl, u)": Sysctl.u.offset,
        "sizeof(((struct xen_domctl_max_mem *)0)->max_memkb)": 8,
        "sizeof(struct xen_domctl_setdomainhandle)": 16,
        "XEN_DOMCTL_getdomaininfo": locked_calls.DOMCTL_GETDOMAININFO,
        "XEN_DOMCTL_destroydomain": locked_calls.DOMCTL_DESTROYDOMAIN,
        "XEN_DOMCTL_max_mem": locked_calls.DOMCTL_MAX_MEM,
        "XEN_DOMCTL_setdomainhandle": locked_calls.DOMCTL_SETDOMAINHANDLE,
        "XEN_SYSCTL_getdomaininfolist": locked_calls.SYSCTL_GETDOMAININFOLIST,
        "XEN_DOMINF_dying": locked_calls.FLAG_DYING,
        "XEN_DOMINF_shutdown": locked_calls.FLAG_SHUTDOWN,
        "XEN_DOMINF_shutdownshift": locked_calls.SHUTDOWN_SHIFT,
        "__HYPERVISOR_memory_op": hypercall.Number.MEMORY_OP,
        "__HYPERVISOR_xen_version": hypercall.Number.XEN_VERSION,
        "__HYPERVISOR_hvm_op": hypercall.Number.HVM_OP,
        "__HYPERVISOR_sysctl": hypercall.Number.SYSCTL,
        "__HYPERVISOR_domctl": hypercall.Number.DOMCTL,
        "HVM_PARAM_STORE_PFN": HvmParam.STORE_PFN,
        "HVM_PARAM_STORE_EVTCHN": HvmParam.STORE_EVTCHN,
        "HVMOP_get_param": stable_calls.HVMOP_GET_PARAM,
        "XENMEM_populate_physmap": stable_calls.XENMEM_POPULATE_PHYSMAP,
        "XENMEM_resource_grant_table": stable_calls.RESOURCE_GRANT_TABLE,
        "GTF_permit_access": stable_calls.GTF_PERMIT_ACCESS,
        "sizeof(struct xen_hvm_param)": ctypes.sizeof(stable_calls.HvmParamArgument),
        "offsetof(struct xen_hvm_param, value)": stable_calls.HvmParamArgument.value.offset,
        "sizeof(struct xen_memory_reservation)": ctypes.sizeof(stable_calls.MemoryReservation),
        "offsetof(struct xen_memory_reservation, domid)": stable_calls.MemoryReservation.domid.offset,
        "sizeof(struct grant_entry_v1)": ctypes.sizeof(stable_calls.GrantEntryV1),
        "offsetof(struct grant_entry_v1, frame)": stable_calls.GrantEntryV1.frame.offset,
    }.items():
        expressions.append(expression)
        expected.append(value)
    assert measure(PREAMBLE, expressions) == expected


def test_the_row_of_the_installed_headers(measure: Measure) -> None:
    expressions = ["XEN_DOMCTL_INTERFACE_VERSION", "XEN_SYSCTL_INTERFACE_VERSION"]
    domctl, sysctl, size = measure(PREAMBLE, [*expressions, "sizeof(struct xen_domctl_getdomaininfo)"])
    rows = [row for row in LAYOUTS.values() if (row.domctl_version, row.sysctl_version) == (domctl, sysctl)]
    assert rows
    assert {row.record_bytes(os.uname().machine) for row in rows} == {size}


class FakeXen:
    """Stands in for `libc`: the ioctl of hypercalls, with offsets written down from the headers of each release."""

    ROWS = {  # domctl version, sysctl version, bytes of a record on x86-64 and arm64
        (4, 17): (0x15, 0x15, 112, 120),
        (4, 18): (0x16, 0x15, 112, 120),
        (4, 19): (0x17, 0x15, 112, 120),
        (4, 20): (0x17, 0x15, 112, 120),
        (4, 21): (0x17, 0x16, 112, 120),
        (4, 22): (0x18, 0x16, 112, 120),
        (4, 23): (0x19, 0x17, 112, 120),
    }

    def __init__(self, version: tuple[int, int] = (4, 20)) -> None:
        self.version = version
        self.domctl, self.sysctl, *sizes = self.ROWS[version]
        self.record_bytes = sizes[os.uname().machine == "aarch64"]
        self.domains = {0: (0, 0), 1: (0, 1), 4: (1 << 0 | 1 << 2 | 3 << 16, 0)}  # flags, max_vcpu_id
        self.max_kib = 1024
        self.params: dict[tuple[int, int], int] = {}
        self.handles: dict[int, bytes] = {}
        self.populated: list[tuple[int, int]] = []
        self.populate_answer = 1
        self.table = ctypes.create_string_buffer(4096)
        self.open_maps = 0
        self.destroys = 0
        self.starts_over = False

    def __getattr__(self, name: str) -> object:
        return getattr(libc, name)

    def mmap(self, length: int, prot: int, flags: int, descriptor: int = -1, offset: int = 0, address: int = 0) -> int:
        self.open_maps += 1
        if length == 4096:
            return ctypes.addressof(self.table)
        return libc.mmap(length, prot, libc.MAP_PRIVATE | libc.MAP_ANONYMOUS)

    def munmap(self, address: int, length: int) -> None:
        self.open_maps -= 1
        if length != 4096:
            libc.munmap(address, length)

    def ioctl(self, descriptor: int, request: int, argument: int) -> int:
        if request == privcmd.MMAP_RESOURCE:
            assert struct.unpack("<HxxIIIQ", ctypes.string_at(argument, 24)) == (1, 1, 0, 0, 1)
        if request != 0x00305000:
            return 0
        number, first, second, *_ = struct.unpack("<6Q", ctypes.string_at(argument, 48))
        answer = {17: self._version, 34: self._hvm, 12: self._memory, 35: self._sysctl, 36: self._domctl}[number]
        result = answer(first, second)
        if result < 0:
            raise OSError(-result, os.strerror(-result))
        return result

    def _version(self, command: int, _: int) -> int:
        assert command == 0
        return self.version[0] << 16 | self.version[1]

    def _hvm(self, command: int, argument: int) -> int:
        domid, index, value = struct.unpack("<HxxIQ", ctypes.string_at(argument, 16))
        if domid not in self.domains:
            return -errno.ESRCH
        if command == 0:
            self.params[domid, index] = value
        else:
            ctypes.memmove(argument + 8, struct.pack("<Q", self.params.get((domid, index), 0)), 8)
        return 0

    def _memory(self, command: int, argument: int) -> int:
        assert command == 6
        frames, count, order, flags, domid = struct.unpack("<QQIIH", ctypes.string_at(argument, 26))
        assert (count, order, flags) == (1, 0, 0)
        self.populated.append((domid, struct.unpack("<Q", ctypes.string_at(frames, 8))[0]))
        return self.populate_answer

    def _record(self, domid: int) -> bytes:
        flags, last_vcpu = self.domains[domid]
        counts = struct.pack("<7Q", 100 + domid, self.max_kib // 4, 0, 0, 0, 0, 0)
        tail = struct.pack("<III", 1, last_vcpu, 0) + self.handles.get(domid, bytes(16)) + bytes(12)
        record = struct.pack("<HxxI", domid, flags) + counts + tail
        return record.ljust(self.record_bytes, b"\xcc")

    def _sysctl(self, argument: int, _: int) -> int:
        command, version, first, count, buffer = struct.unpack("<IIHxxIQ", ctypes.string_at(argument, 24))
        if version != self.sysctl:
            return -errno.EACCES
        assert command == 6
        first = 0 if self.starts_over else first
        records = [self._record(domid) for domid in self.domains if domid >= first][:count]
        ctypes.memmove(buffer, b"".join(records), sum(map(len, records)))
        ctypes.memmove(argument + 24, struct.pack("<I", len(records)), 4)
        return 0

    def _domctl(self, argument: int, _: int) -> int:
        command, version, domid = struct.unpack("<IIH", ctypes.string_at(argument, 10))
        if version != self.domctl:
            return -errno.EACCES
        if command == 5:
            if self.version == (4, 17):
                domid = min((known for known in self.domains if known >= domid), default=-1)
            if domid not in self.domains:
                return -errno.ESRCH
            record = self._record(domid)
            ctypes.memmove(argument + 16, record, len(record))
        elif command == 2:
            self.destroys += 1
            if self.destroys < 3:
                return -errno.EAGAIN
            del self.domains[domid]
        elif command == 11:
            (self.max_kib,) = struct.unpack("<Q", ctypes.string_at(argument + 16, 8))
        else:
            assert command == 17
            self.handles[domid] = ctypes.string_at(argument + 16, 16)
        return 0


Open = Callable[[FakeXen], DomainControl]


@pytest.fixture
def open_control(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Open:
    def run(xen: FakeXen) -> DomainControl:
        for module in (hypercall, node, privcmd):
            monkeypatch.setattr(module, "libc", xen)
        monkeypatch.setattr("xenvirtio.xen.linux.domain_control.libc", xen)
        for name in ("privcmd", "hypercall"):
            (tmp_path / name).touch()
        return LinuxHypervisor(str(tmp_path)).open_domain_control()

    return run


@pytest.mark.parametrize("version", KNOWN_RELEASES, ids=str)
def test_domains_of_every_known_release(open_control: Open, version: XenVersion) -> None:
    xen = FakeXen(version)
    control = open_control(xen)
    control.set_handle(DomId(1), bytes(range(16)))
    infos = control.domains()
    assert control.xen_version() == version
    assert [(info.domid, info.max_vcpus, info.current_pages) for info in infos] == [
        (0, 1, 100),
        (1, 2, 101),
        (4, 1, 104),
    ]
    assert infos[1].handle == bytes(range(16))
    assert (infos[1].is_dying, infos[1].is_shutdown) == (False, False)
    assert (infos[2].is_dying, infos[2].is_shutdown, infos[2].shutdown_reason) == (True, True, 3)
    control.raise_max_memory(DomId(1), 1)
    assert xen.max_kib == 1028
    with pytest.raises(HypervisorError, match="ESRCH"):
        control.raise_max_memory(DomId(2), 1)


def test_more_domains_than_one_call_returns(open_control: Open) -> None:
    xen = FakeXen()
    xen.domains = dict.fromkeys(range(0, 900, 2), (0, 0))
    assert [info.domid for info in open_control(xen).domains()] == list(range(0, 900, 2))


def test_a_release_not_known_is_refused_in_one_line(open_control: Open) -> None:
    xen = FakeXen((4, 23))
    with pytest.raises(HypervisorError) as caught:
        open_control(xen)
    assert "this is Xen 4.23, whose control interface is not known; known: 4.17 to 4.22" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert xen.open_maps == 0


@pytest.mark.parametrize("changed", ["domctl", "sysctl"])
def test_a_build_that_only_calls_itself_known_is_refused(open_control: Open, changed: str) -> None:
    xen = FakeXen()
    setattr(xen, changed, 0x99)
    with pytest.raises(HypervisorError, match=r"calls itself 4\.20 but has another control interface"):
        open_control(xen)


def test_a_list_without_domain_0_is_refused(open_control: Open) -> None:
    xen = FakeXen()
    xen.domains = {3: (0, 0), 0: (0, 0)}
    with pytest.raises(HypervisorError, match="the first domain of its list is not domain 0"):
        open_control(xen)


def test_a_list_that_goes_back_is_refused_and_not_followed_for_ever(open_control: Open) -> None:
    xen = FakeXen()
    control = open_control(xen)
    xen.domains = dict.fromkeys(range(128), (0, 0))
    xen.starts_over = True
    with pytest.raises(HypervisorError, match="from domain 128 on has an earlier one"):
        control.domains()


def test_params_pages_and_grants(open_control: Open) -> None:
    xen = FakeXen()
    control = open_control(xen)
    xen.params[1, HvmParam.STORE_PFN] = (1 << 64) - 1
    assert control.hvm_param(DomId(1), HvmParam.STORE_PFN) == (1 << 64) - 1
    control.set_hvm_param(DomId(1), HvmParam.STORE_PFN, 0x39001)
    assert xen.params[1, 1] == 0x39001
    control.populate_page(DomId(1), Gfn(0x39001))
    assert xen.populated == [(1, 0x39001)]
    control.seed_grant(DomId(1), GrantRef(1), Gfn(0x39001))
    assert xen.table.raw[8:16] == struct.pack("<HHI", 1, 0, 0x39001)
    with pytest.raises(HypervisorError, match="ESRCH"):
        control.hvm_param(DomId(9), HvmParam.STORE_PFN)
    xen.populate_answer = 0
    with pytest.raises(HypervisorError, match="ENOMEM"):
        control.populate_page(DomId(1), Gfn(0x39002))
    control.close()
    control.close()
    assert xen.open_maps == 0


def test_a_domain_is_taken_apart_until_xen_is_done(open_control: Open) -> None:
    xen = FakeXen()
    control = open_control(xen)
    control.destroy(DomId(1))
    assert xen.destroys == 3
    assert [info.domid for info in control.domains()] == [0, 4]


def test_a_vcpu_less_domain_has_none(open_control: Open) -> None:
    xen = FakeXen()
    xen.domains[1] = (0, 0xFFFFFFFF)
    assert open_control(xen).domains()[1].max_vcpus == 0
