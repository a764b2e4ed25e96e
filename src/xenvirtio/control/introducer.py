"""Brings domains into XenStore and takes dead ones out: makes what XenStore shows agree with what Xen lists.

One pass, `reconcile`, serves start, restart, a domain's birth and its death alike. A mark for each domain of ours,
below `MARKS`, is written in the same transaction as its nodes: it tells a successor what is ours, and by the UUID in
it whether the domain of that number is still the same one. What an `xl` in the same dom0 built is left alone: such a
domain has a UUID from its first moment, and no mark.

    Xen lists it   marked        introduced    what is done
    yes            no            no            nodes and mark, UUID to Xen, introduce
    yes            yes           no            the same (the last time was cut off)
    yes            yes           yes           planned devices that are missing are written
    stopped        yes           any           destroyed, unless told to keep it
    dying          yes           any           backend directories removed, so that backends let go of it
    no             yes           any           nodes, backend directories and mark removed
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from uuid import NAMESPACE_OID, UUID, uuid5

from xenvirtio.control import nodes
from xenvirtio.control.nodes import Node, write_nodes
from xenvirtio.control.store_page import provide_store_page
from xenvirtio.errors import HypervisorError, XenStoreError
from xenvirtio.ids import DomId
from xenvirtio.static.plan import Plan, PlannedDevice, Role, Transport
from xenvirtio.xen.capabilities import HANDLE_BYTES, DomainControl, DomainInfo, ForeignMemory
from xenvirtio.xenstore.client import Operations, XenStoreClient

log = logging.getLogger("xenvirtio.control")

MARKS = "/tool/xenvirtio/domains"
CONTROL_DOMID = DomId(0)
PAGE_KIB = 4
NIL = UUID(int=0)

_REASONS = {0: "poweroff", 1: "reboot", 2: "suspend", 3: "crash", 4: "watchdog", 5: "soft reset"}
_SUSPENDED = 2
_DOMID_DIGITS = 5


class OnStop(Enum):
    """What happens to a domain of ours that has stopped by itself."""

    DESTROY = "destroy"
    KEEP = "keep"


@dataclass(slots=True)
class Outcome:
    """What one pass has done."""

    introduced: list[DomId] = field(default_factory=list)
    without_store: list[DomId] = field(default_factory=list)
    gone: list[DomId] = field(default_factory=list)
    failed: list[DomId] = field(default_factory=list)


class Introducer:
    """Keeps XenStore true to Xen's list of domains. One thread at a time."""

    def __init__(
        self,
        control: DomainControl,
        open_memory: Callable[[DomId], ForeignMemory],
        store: XenStoreClient,
        plan: Plan | None = None,
        *,
        on_stop: OnStop = OnStop.DESTROY,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._control = control
        self._open_memory = open_memory
        self._store = store
        self._plan = plan
        self._on_stop = on_stop
        self._clock = clock
        self._names = {domid: name for name, domid in plan.domains.items()} if plan is not None else {}
        self._ours: dict[DomId, UUID] = {}
        """Domains of ours, for a store that has lost its marks."""
        self._said: dict[DomId, str] = {}

    def reconcile(self) -> Outcome:
        """Do what is to do now. A domain that cannot be served does not keep the others from it.

        Raises:
            XenStoreError: XenStore does not answer.
            HypervisorError: Xen does not list its domains.
        """
        self._write_dom0()
        outcome = Outcome()
        infos = {info.domid: info for info in self._control.domains() if info.domid != CONTROL_DOMID}
        marks = self._marks()
        for domid, uuid in marks.items():
            info = infos.get(domid)
            if info is None or info.handle not in (uuid.bytes, NIL.bytes):
                self._forget(domid, uuid)
                outcome.gone.append(domid)
        for record in (self._said, self._ours):
            for domid in [domid for domid in record if domid not in infos]:
                del record[domid]
        kept = {domid: uuid for domid, uuid in marks.items() if domid not in outcome.gone}
        for info in infos.values():
            try:
                self._attend(info, kept.get(info.domid), outcome)
            except HypervisorError as error:
                outcome.failed.append(info.domid)
                self._say(info.domid, f"not introduced: {error}")
            except XenStoreError as error:
                if error.name == "ETIMEDOUT":
                    raise
                outcome.failed.append(info.domid)
                self._say(info.domid, f"not introduced: {error}")
        return outcome

    def _write_dom0(self) -> None:
        """Write what dom0 finds of itself, unless it is there: also after a store came back without its state."""
        wanted = nodes.dom0_nodes()
        if any(self._store.read_optional(node.path) is None for node in wanted):
            self._store.transact(lambda store: write_nodes(store, wanted))

    def _attend(self, info: DomainInfo, mark: UUID | None, outcome: Outcome) -> None:
        if info.is_dying:
            if mark is not None:
                self._remove_backends(self._store, info.domid)  # it cannot go while a backend maps its pages
        elif info.is_shutdown:
            if mark is not None:
                self._stopped(info)
        elif mark is not None and self._store.is_domain_introduced(info.domid):
            self._write_missing_devices(info)
        elif (uuid := mark or self._choose_uuid(info)) is not None:
            self._bring_up(info, uuid, outcome, is_marked=mark is not None)

    def _choose_uuid(self, info: DomainInfo) -> UUID | None:
        """The UUID of a domain without a mark; None for one that somebody else has given one.

        A planned domain has the same after each boot of the same build, so it is known again in an empty store.
        """
        if self._plan is not None and info.domid in self._names:
            planned = nodes.planned_uuid(self._plan, info.domid, self._names[info.domid])
            if info.handle in (NIL.bytes, planned.bytes):
                return planned
        if info.handle != NIL.bytes:
            known = self._ours.get(info.domid)
            return known if known is not None and known.bytes == info.handle else None
        try:
            return UUID(bytes=os.getrandom(HANDLE_BYTES, os.GRND_NONBLOCK), version=4)
        except BlockingIOError:  # early at boot the pool may be empty for seconds; unique on this host is enough
            return uuid5(NAMESPACE_OID, f"{time.time_ns()}/{info.domid}")

    def _bring_up(self, info: DomainInfo, uuid: UUID, outcome: Outcome, *, is_marked: bool) -> None:
        domid = info.domid
        page = provide_store_page(self._control, self._open_memory, domid)
        if page is None:
            outcome.without_store.append(domid)
            if is_marked and info.handle == uuid.bytes:
                self._write_missing_devices(info)
                return
        name = self._names.get(domid, f"dom0less-{domid}")
        wanted = nodes.domain_nodes(
            domid,
            name,
            uuid,
            vcpus=info.max_vcpus,
            limit_kib=info.max_pages * PAGE_KIB,
            target_kib=info.current_pages * PAGE_KIB,
            start_time_s=self._clock(),
            store=page,
        )
        for device in self._devices(domid):
            wanted += nodes.device_nodes(device, CONTROL_DOMID, domid)
        wanted += [Node(MARKS, "", ("n0",)), Node(f"{MARKS}/{domid}", str(uuid))]
        self._store.transact(lambda store: write_nodes(store, wanted))
        self._control.set_handle(domid, uuid.bytes)
        self._ours[domid] = uuid
        facts = {"domain": domid, "guest": name, "uuid": str(uuid), "vcpus": info.max_vcpus}
        if page is None:
            log.info("domain without XenStore entered", extra=facts)
            return
        self._store.introduce(domid, page.gfn, page.port)
        outcome.introduced.append(domid)
        self._said.pop(domid, None)
        log.info("domain introduced", extra=facts)

    def _write_missing_devices(self, info: DomainInfo) -> None:
        for device in self._devices(info.domid):
            state = f"{nodes.backend_directory(CONTROL_DOMID, info.domid, device.devid)}/state"
            if self._store.read_optional(state) is None:
                wanted = nodes.device_nodes(device, CONTROL_DOMID, info.domid)
                self._store.transact(lambda store, wanted=wanted: write_nodes(store, wanted))  # type: ignore[misc]
                log.info("device entered", extra={"domain": info.domid, "device": device.name})

    def _devices(self, domid: DomId) -> list[PlannedDevice]:
        """The devices that dom0 serves for a domain, through virtio-mmio."""
        if self._plan is None:
            return []
        return [
            device
            for device in self._plan.devices
            if device.role is Role.BACKEND
            and device.transport is Transport.MMIO
            and self._plan.domains[device.peer] == domid
        ]

    def _stopped(self, info: DomainInfo) -> None:
        reason = _REASONS.get(info.shutdown_reason, str(info.shutdown_reason))
        if self._on_stop is OnStop.KEEP or info.shutdown_reason == _SUSPENDED:
            self._say(info.domid, f"stopped ({reason}); kept", level=logging.INFO)
            return
        self._say(info.domid, f"stopped ({reason}); destroyed: nothing can start it again before the next boot")
        self._control.destroy(info.domid)
        self._remove_backends(self._store, info.domid)

    def _forget(self, domid: DomId, uuid: UUID) -> None:
        def remove(store: Operations) -> None:
            for path in (nodes.home(domid), f"/vm/{uuid}", f"{MARKS}/{domid}"):
                if store.exists(path):
                    store.rm(path)
            self._remove_backends(store, domid)

        self._store.transact(remove)
        if self._store.is_domain_introduced(domid):
            try:
                self._store.release(domid)
            except XenStoreError as error:
                log.debug("%s", error)  # the server has noticed itself
        log.info("domain gone", extra={"domain": domid, "uuid": str(uuid)})

    @staticmethod
    def _remove_backends(store: Operations, domid: DomId) -> None:
        path = f"{nodes.backend_kind(CONTROL_DOMID)}/{domid}"
        if store.exists(path):
            store.rm(path)

    def _marks(self) -> dict[DomId, UUID]:
        """The domains of ours, by their marks; one that somebody spoilt is none."""
        try:
            names = self._store.directory(MARKS)
        except XenStoreError as error:
            if error.name == "ENOENT":
                return {}
            raise
        found: dict[DomId, UUID] = {}
        for name in names:
            try:
                domid = DomId(int(name[:_DOMID_DIGITS]))
                if str(domid) == name:
                    found[domid] = UUID(self._store.read_optional(f"{MARKS}/{name}") or "")
            except ValueError:
                pass
        return found

    def _say(self, domid: DomId, what: str, *, level: int = logging.WARNING) -> None:
        if self._said.get(domid) != what:
            self._said[domid] = what
            log.log(level, "domain %d %s", domid, what)
