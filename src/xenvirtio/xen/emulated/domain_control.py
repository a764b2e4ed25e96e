"""The control domain's calls: the host's side of each, and the client that makes them."""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from xenvirtio.errors import UsageError
from xenvirtio.ids import DomId, Gfn, GrantRef
from xenvirtio.xen.capabilities import HANDLE_BYTES, DomainInfo, HvmParam, XenVersion
from xenvirtio.xen.emulated.domain import Domain, DomainState
from xenvirtio.xen.emulated.refusal import Refusal
from xenvirtio.xen.emulated.wire import Message
from xenvirtio.xen.versions import check_known

if TYPE_CHECKING:
    from xenvirtio.xen.emulated.host import EmulatedHost

_RECORD = struct.Struct("<HBBHHQQ16s")
_SHUTDOWN_CRASH = 3
_RESERVED_REFERENCES = 8
_HVM_PARAMS = 39


def _version(host: EmulatedHost, request: Message) -> Message:
    return Message(values={"major": host.version.major, "minor": host.version.minor})


def _list(host: EmulatedHost, request: Message) -> Message:
    return Message(raw=b"".join(_record(d) for d in sorted(host.domains(), key=lambda domain: domain.domid)))


def _record(domain: Domain) -> bytes:
    state, vcpus = domain.state, len(domain.vcpus)
    return _RECORD.pack(
        domain.domid,
        state is DomainState.DYING,
        state is not DomainState.RUNNING,
        vcpus,
        vcpus,
        domain.populated_pages,
        domain.max_pages,
        domain.handle,
    )


def _existing(host: EmulatedHost, request: Message) -> Domain:
    domain = host.domain(DomId(request.values["domid"]))
    if domain is None:
        raise Refusal(errno.ESRCH)
    return domain


def _living(host: EmulatedHost, request: Message) -> Domain:
    domain = _existing(host, request)
    if domain.state is DomainState.DYING:
        raise Refusal(errno.EINVAL, f"domain {domain.domid} is dying")
    return domain


def _destroy(host: EmulatedHost, request: Message) -> Message:
    domain = _existing(host, request)
    if domain.domid == 0:
        raise Refusal(errno.EINVAL)
    host.destroy_domain(domain.domid)
    return Message()


def _hvm_param(host: EmulatedHost, request: Message) -> Message:
    return Message(values={"value": _existing(host, request).hvm_params.get(_index(request), 0)})


def _set_hvm_param(host: EmulatedHost, request: Message) -> Message:
    _existing(host, request).hvm_params[_index(request)] = request.values["value"]
    return Message()


def _index(request: Message) -> int:
    index = request.values["index"]
    if not 0 <= index < _HVM_PARAMS:
        raise Refusal(errno.EINVAL)
    return index


def _set_handle(host: EmulatedHost, request: Message) -> Message:
    _existing(host, request).handle = request.raw
    return Message()


def _raise_max_memory(host: EmulatedHost, request: Message) -> Message:
    _existing(host, request).max_pages += request.values["extra_pages"]
    return Message()


def _populate_page(host: EmulatedHost, request: Message) -> Message:
    domain, gfn = _living(host, request), Gfn(request.values["gfn"])
    if domain.populated_pages >= domain.max_pages or not domain.memory.populate_page(gfn):
        raise Refusal(errno.ENOMEM)
    domain.populated_pages += 1
    return Message()


def _seed_grant(host: EmulatedHost, request: Message) -> Message:
    reference = GrantRef(request.values["reference"])
    _living(host, request).grants.seed(reference, DomId(0), Gfn(request.values["gfn"]))
    return Message()


CONTROL_OPERATIONS: dict[str, Callable[[EmulatedHost, Message], Message]] = {
    "xen_version": _version,
    "list_domains": _list,
    "destroy_domain": _destroy,
    "hvm_param": _hvm_param,
    "set_hvm_param": _set_hvm_param,
    "set_handle": _set_handle,
    "raise_max_memory": _raise_max_memory,
    "populate_page": _populate_page,
    "seed_grant": _seed_grant,
}


class _Call(Protocol):
    def __call__(self, operation: str, values: dict[str, int], raw: bytes = b"") -> Message: ...


class EmulatedDomainControl:
    """`DomainControl` over an emulated host."""

    def __init__(self, call: _Call) -> None:
        self._call = call
        values = call("xen_version", {}).values
        self._version = XenVersion(values["major"], values["minor"])
        check_known(self._version)

    def xen_version(self) -> XenVersion:
        return self._version

    def domains(self) -> list[DomainInfo]:
        return [
            DomainInfo(
                domid=DomId(domid),
                is_dying=bool(dying),
                is_shutdown=bool(shutdown),
                shutdown_reason=_SHUTDOWN_CRASH if shutdown else 0,
                max_vcpus=max_vcpus,
                online_vcpus=online,
                current_pages=current,
                max_pages=limit,
                handle=handle,
            )
            for domid, dying, shutdown, max_vcpus, online, current, limit, handle in _RECORD.iter_unpack(
                self._call("list_domains", {}).raw
            )
        ]

    def destroy(self, domid: DomId) -> None:
        self._call("destroy_domain", {"domid": domid})

    def hvm_param(self, domid: DomId, index: HvmParam) -> int:
        return self._call("hvm_param", {"domid": domid, "index": index}).values["value"]

    def set_hvm_param(self, domid: DomId, index: HvmParam, value: int) -> None:
        self._call("set_hvm_param", {"domid": domid, "index": index, "value": value})

    def set_handle(self, domid: DomId, handle: bytes) -> None:
        if len(handle) != HANDLE_BYTES:
            raise UsageError(f"a handle of {len(handle)} bytes")
        self._call("set_handle", {"domid": domid}, handle)

    def raise_max_memory(self, domid: DomId, extra_pages: int) -> None:
        self._call("raise_max_memory", {"domid": domid, "extra_pages": extra_pages})

    def populate_page(self, domid: DomId, gfn: Gfn) -> None:
        self._call("populate_page", {"domid": domid, "gfn": gfn})

    def seed_grant(self, domid: DomId, reference: GrantRef, gfn: Gfn) -> None:
        if not 0 <= reference < _RESERVED_REFERENCES:
            raise UsageError(f"grant reference {reference} is not a reserved one")
        self._call("seed_grant", {"domid": domid, "reference": reference, "gfn": gfn})

    def close(self) -> None:
        """Nothing to do: it holds nothing at the host."""
