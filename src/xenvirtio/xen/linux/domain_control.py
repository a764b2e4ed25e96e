"""What a control domain does to others, through privcmd."""

from __future__ import annotations

import ctypes

from xenvirtio.errors import UsageError
from xenvirtio.ids import PAGE_SIZE, DomId, Gfn, GrantRef
from xenvirtio.xen import libc
from xenvirtio.xen.capabilities import HANDLE_BYTES, DomainInfo, HvmParam, XenVersion
from xenvirtio.xen.linux import stable_calls
from xenvirtio.xen.linux.hypercall import Hypercalls
from xenvirtio.xen.linux.locked_calls import LockedCalls
from xenvirtio.xen.linux.privcmd import Privcmd
from xenvirtio.xen.versions import check_known


class LinuxDomainControl:
    """`DomainControl` over privcmd; only the control domain may have it."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._calls = Hypercalls(directory)
        try:
            self._version = stable_calls.xen_version(self._calls)
            check_known(self._version)
            self._locked = LockedCalls(self._calls, self._version)
        except BaseException:
            self._calls.close()
            raise

    def xen_version(self) -> XenVersion:
        return self._version

    def domains(self) -> list[DomainInfo]:
        return self._locked.domains()

    def destroy(self, domid: DomId) -> None:
        self._locked.destroy(domid)

    def hvm_param(self, domid: DomId, index: HvmParam) -> int:
        return stable_calls.hvm_param(self._calls, domid, index)

    def set_hvm_param(self, domid: DomId, index: HvmParam, value: int) -> None:
        stable_calls.set_hvm_param(self._calls, domid, index, value)

    def set_handle(self, domid: DomId, handle: bytes) -> None:
        if len(handle) != HANDLE_BYTES:
            raise UsageError(f"a handle of {len(handle)} bytes")
        self._locked.set_handle(domid, handle)

    def raise_max_memory(self, domid: DomId, extra_pages: int) -> None:
        self._locked.set_max_memory(domid, self._locked.domain(domid).max_pages + extra_pages)

    def populate_page(self, domid: DomId, gfn: Gfn) -> None:
        stable_calls.populate_page(self._calls, domid, gfn)

    def seed_grant(self, domid: DomId, reference: GrantRef, gfn: Gfn) -> None:
        """The guest may run meanwhile; kernels leave the reserved references (0 to 7) alone."""
        if not 0 <= reference < PAGE_SIZE // ctypes.sizeof(stable_calls.GrantEntryV1):
            raise UsageError(f"grant reference {reference} is not in the first page of the table")
        privcmd = Privcmd(f"{self._directory}/privcmd", domid)
        try:
            table = privcmd.map_resource(
                "seed_grant", stable_calls.RESOURCE_GRANT_TABLE, stable_calls.GRANT_TABLE_SHARED, 0
            )
            try:
                size = ctypes.sizeof(stable_calls.GrantEntryV1)
                entry = stable_calls.GrantEntryV1.from_address(table + reference * size)
                entry.domid, entry.frame = 0, gfn
                entry.flags = stable_calls.GTF_PERMIT_ACCESS  # last: it makes the entry valid
            finally:
                libc.munmap(table, PAGE_SIZE)
        finally:
            privcmd.close()

    def close(self) -> None:
        self._calls.close()
