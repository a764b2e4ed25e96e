"""Hypercalls whose numbers and layouts are locked to a release of Xen: domctl and sysctl. All of them are here.

One row of `LAYOUTS` per release says what differs; between 4.17 and 4.22 that is only the two version numbers, as
far as the calls made here are concerned. A release is added by comparing its headers with these: compile
tests/xen/linux/test_locked_calls.py against them, and see how do_domctl treats the commands.

Source: xen/include/public/{domctl.h,sysctl.h} of stable-4.17 to stable-4.22.
"""

from __future__ import annotations

import ctypes
import errno
import platform
from dataclasses import dataclass
from typing import ClassVar

from xenvirtio.errors import HypervisorError
from xenvirtio.ids import DomId
from xenvirtio.xen.capabilities import HANDLE_BYTES, DomainInfo, XenVersion
from xenvirtio.xen.linux.hypercall import Hypercalls, Number

DOMCTL_DESTROYDOMAIN = 2
DOMCTL_GETDOMAININFO = 5
DOMCTL_MAX_MEM = 11
DOMCTL_SETDOMAINHANDLE = 17
SYSCTL_GETDOMAININFOLIST = 6

FLAG_DYING = 1 << 0
FLAG_SHUTDOWN = 1 << 2
SHUTDOWN_SHIFT = 16
SHUTDOWN_MASK = 255
NO_VCPUS = 0xFFFFFFFF

_PAGE_KIB = 4
_BATCH = 128


@dataclass(frozen=True, slots=True)
class Layout:
    """What differs between releases."""

    domctl_version: int
    sysctl_version: int
    arm_record_bytes: int = 120
    """sizeof(struct xen_domctl_getdomaininfo): it ends in a part of the architecture's, which is not read."""
    x86_record_bytes: int = 112

    def record_bytes(self, machine: str) -> int:
        return self.arm_record_bytes if machine == "aarch64" else self.x86_record_bytes


LAYOUTS: dict[XenVersion, Layout] = {
    XenVersion(4, 17): Layout(domctl_version=0x15, sysctl_version=0x15),
    XenVersion(4, 18): Layout(domctl_version=0x16, sysctl_version=0x15),
    XenVersion(4, 19): Layout(domctl_version=0x17, sysctl_version=0x15),
    XenVersion(4, 20): Layout(domctl_version=0x17, sysctl_version=0x15),
    XenVersion(4, 21): Layout(domctl_version=0x17, sysctl_version=0x16),
    XenVersion(4, 22): Layout(domctl_version=0x18, sysctl_version=0x16),
}


class DomainRecord(ctypes.Structure):
    """`struct xen_domctl_getdomaininfo` without the architecture's part at its end."""

    _fields_: ClassVar = [
        ("domain", ctypes.c_uint16),
        ("pad1", ctypes.c_uint16),
        ("flags", ctypes.c_uint32),
        ("tot_pages", ctypes.c_uint64),
        ("max_pages", ctypes.c_uint64),
        ("outstanding_pages", ctypes.c_uint64),
        ("shr_pages", ctypes.c_uint64),
        ("paged_pages", ctypes.c_uint64),
        ("shared_info_frame", ctypes.c_uint64),
        ("cpu_time", ctypes.c_uint64),
        ("nr_online_vcpus", ctypes.c_uint32),
        ("max_vcpu_id", ctypes.c_uint32),
        ("ssidref", ctypes.c_uint32),
        ("handle", ctypes.c_uint8 * HANDLE_BYTES),
        ("cpupool", ctypes.c_uint32),
        ("gpaddr_bits", ctypes.c_uint8),
        ("pad2", ctypes.c_uint8 * 7),
    ]


class DomctlHead(ctypes.Structure):
    _fields_: ClassVar = [
        ("cmd", ctypes.c_uint32),
        ("interface_version", ctypes.c_uint32),
        ("domain", ctypes.c_uint16),
        ("pad", ctypes.c_uint16 * 3),
    ]


class Domctl(ctypes.Structure):
    """`struct xen_domctl`; the operation's own structure lies in `arguments`."""

    _fields_: ClassVar = [("head", DomctlHead), ("arguments", ctypes.c_uint8 * 128)]


class DomainList(ctypes.Structure):
    """`struct xen_sysctl_getdomaininfolist`."""

    _fields_: ClassVar = [
        ("first_domain", ctypes.c_uint16),
        ("max_domains", ctypes.c_uint32),
        ("buffer", ctypes.c_uint64),
        ("num_domains", ctypes.c_uint32),
    ]


class SysctlArguments(ctypes.Union):
    _fields_: ClassVar = [("getdomaininfolist", DomainList), ("pad", ctypes.c_uint8 * 128)]


class Sysctl(ctypes.Structure):
    _fields_: ClassVar = [
        ("cmd", ctypes.c_uint32),
        ("interface_version", ctypes.c_uint32),
        ("u", SysctlArguments),
    ]


class LockedCalls:
    """The locked hypercalls of one running Xen."""

    def __init__(self, calls: Hypercalls, version: XenVersion, machine: str | None = None) -> None:
        """Check that this Xen speaks what `version` says, by two calls that change nothing.

        Raises:
            HypervisorError: it does not (a build that only calls itself `version`), or this is not the control domain.
        """
        self._calls = calls
        self._version = version
        self._layout = LAYOUTS[version]
        self._record_bytes = self._layout.record_bytes(machine or platform.machine())
        try:
            self._domctl("get_domain_info", DomId(0), DOMCTL_GETDOMAININFO, b"")
            first = self._list(DomId(0), 1)
        except HypervisorError as error:
            if error.errno != errno.EACCES:
                raise
            raise self._unlike("its version numbers differ") from error
        if [info.domid for info in first] != [0]:
            raise self._unlike("the first domain of its list is not domain 0")

    def _unlike(self, what: str) -> HypervisorError:
        hint = f"this Xen calls itself {self._version} but has another control interface ({what})"
        return HypervisorError("open_domain_control", errno.EOPNOTSUPP, hint=hint)

    def domains(self) -> list[DomainInfo]:
        found: list[DomainInfo] = []
        first = DomId(0)
        while True:
            batch = self._list(first, _BATCH)
            if any(info.domid < first for info in batch):
                raise self._unlike(f"its list from domain {first} on has an earlier one")  # and would never end
            found += batch
            if len(batch) < _BATCH:
                return found
            first = DomId(batch[-1].domid + 1)

    def domain(self, domid: DomId) -> DomainInfo:
        """Raises HypervisorError: ESRCH when there is no such domain."""
        answer = self._domctl("get_domain_info", domid, DOMCTL_GETDOMAININFO, b"")
        info = _info(DomainRecord.from_buffer_copy(answer))
        if info.domid != domid:  # 4.17 answers with the next domain that there is
            raise HypervisorError("get_domain_info", errno.ESRCH, domid=domid)
        return info

    def destroy(self, domid: DomId) -> None:
        while True:
            try:
                self._domctl("destroy_domain", domid, DOMCTL_DESTROYDOMAIN, b"")
                return
            except HypervisorError as error:
                if error.errno != errno.EAGAIN:  # Xen takes a domain apart piece by piece
                    raise

    def set_max_memory(self, domid: DomId, pages: int) -> None:
        self._domctl("raise_max_memory", domid, DOMCTL_MAX_MEM, (pages * _PAGE_KIB).to_bytes(8, "little"))

    def set_handle(self, domid: DomId, handle: bytes) -> None:
        self._domctl("set_handle", domid, DOMCTL_SETDOMAINHANDLE, handle)

    def _domctl(self, operation: str, domid: DomId, command: int, arguments: bytes) -> bytes:
        head = DomctlHead(command, self._layout.domctl_version, domid)
        with self._calls.arguments() as memory:
            request = memory.put(Domctl(head, (ctypes.c_uint8 * 128)(*arguments)))
            self._calls.call(operation, Number.DOMCTL, ctypes.addressof(request), domid=domid)
            return bytes(request.arguments)

    def _list(self, first: DomId, count: int) -> list[DomainInfo]:
        with self._calls.arguments() as memory:
            buffer = memory.reserve(count * self._record_bytes)
            request = Sysctl(SYSCTL_GETDOMAININFOLIST, self._layout.sysctl_version)
            request.u.getdomaininfolist = DomainList(first, count, buffer, 0)
            request = memory.put(request)
            self._calls.call("list_domains", Number.SYSCTL, ctypes.addressof(request))
            found = min(request.u.getdomaininfolist.num_domains, count)
            return [_info(DomainRecord.from_address(buffer + i * self._record_bytes)) for i in range(found)]


def _info(record: DomainRecord) -> DomainInfo:
    return DomainInfo(
        domid=DomId(record.domain),
        is_dying=bool(record.flags & FLAG_DYING),
        is_shutdown=bool(record.flags & FLAG_SHUTDOWN),
        shutdown_reason=record.flags >> SHUTDOWN_SHIFT & SHUTDOWN_MASK,
        max_vcpus=0 if record.max_vcpu_id == NO_VCPUS else record.max_vcpu_id + 1,
        online_vcpus=record.nr_online_vcpus,
        current_pages=record.tot_pages,
        max_pages=record.max_pages,
        handle=bytes(record.handle),
    )
