"""A XenStore inside `xenvirtio serve`, filled from a plan: for a backend domain in which there is none at all.

The supervisor reads the same nodes that a toolstack would have written. Nobody announces the death of a guest here, so
a small thread asks Xen for each guest now and then, and takes the directories of one that is gone away.
"""

from __future__ import annotations

import logging
import socket
import threading
import time

from xenvirtio.channels.unix_socket import UnixSocketChannel
from xenvirtio.control import nodes
from xenvirtio.control.nodes import Node, write_nodes
from xenvirtio.daemon.guest import DOMAIN_GONE
from xenvirtio.errors import ConfigurationError, HypervisorError, XenvirtioError
from xenvirtio.ids import DomId
from xenvirtio.static.plan import Plan, PlannedDevice, Role, Transport
from xenvirtio.xen.capabilities import DomainControl, Hypervisor
from xenvirtio.xenstore.client import XenStoreClient
from xenvirtio.xenstore.serve import XenStoreService
from xenvirtio.xenstore.server import XenStoreServer

log = logging.getLogger("xenvirtio.serve")

LOOK_S = 2.0
READY_S = 10.0


class PlanStore:
    """Run it as a context manager; `client` is the way in."""

    def __init__(self, plan: Plan, hypervisor: Hypervisor, *, look_s: float = LOOK_S) -> None:
        """
        Raises:
            ConfigurationError: the plan has no device that this domain serves over virtio-mmio.
        """
        self._plan = plan
        self._hypervisor = hypervisor
        self._look_s = look_s
        self._devices = served_devices(plan)
        if not self._devices:
            raise ConfigurationError(
                f"plan of {plan.name!r}",
                "has no [[device]] with role 'backend' and transport 'mmio'",
                "serve needs a plan for such devices only",
            )
        self._guests = sorted({self._domid_of(device) for device in self._devices})
        self._service = XenStoreService(XenStoreServer(time.monotonic))
        self._stopping = threading.Event()
        self._watcher = threading.Thread(target=self._watch_guests, name="plan-guests", daemon=True)

    def __enter__(self) -> PlanStore:
        self._service.start()
        self._client = XenStoreClient(self._connect)  # it attaches itself, from a thread: the service has to run
        self._client.wait_ready(READY_S)
        own = nodes.home(self._plan.domid)
        wanted = [Node(f"{own}/domid", str(self._plan.domid)), Node(f"{own}/name", self._plan.name)]
        for domid in self._guests:
            wanted += self._guest_nodes(domid)
        self._write(wanted)
        self._watcher.start()
        return self

    @property
    def client(self) -> XenStoreClient:
        return self._client

    def __exit__(self, *exc_info: object) -> None:
        self._stopping.set()
        self._watcher.join()
        self._client.close()
        self._service.stop()

    def _connect(self) -> UnixSocketChannel:
        ours, theirs = socket.socketpair()
        self._service.attach(theirs, self._plan.domid, privileged=True)
        return UnixSocketChannel(ours)

    def _write(self, wanted: list[Node]) -> None:
        self.client.transact(lambda store: write_nodes(store, wanted))

    def _domid_of(self, device: PlannedDevice) -> DomId:
        return self._plan.domains[device.peer]

    def _guest_nodes(self, domid: DomId) -> list[Node]:
        devices = [device for device in self._devices if self._domid_of(device) == domid]
        name = devices[0].peer
        # The UUID that `xenvirtio control` would give it: either's backend may take over from the other's.
        identity = [
            Node(f"{nodes.home(domid)}/name", name),
            Node(f"{nodes.home(domid)}/vm", f"/vm/{nodes.planned_uuid(self._plan, domid, name)}"),
        ]
        return identity + [
            node for device in devices for node in nodes.device_nodes(device, self._plan.domid, domid)
        ]

    def _watch_guests(self) -> None:
        shown = set(self._guests)
        control = self._open_control()
        while not self._stopping.wait(self._look_s):
            try:
                there = self._living(control)
                for domid in shown - there:
                    log.warning("domain %d is gone", domid)
                    self.client.rm(f"{nodes.backend_kind(self._plan.domid)}/{domid}")
                for domid in there - shown:
                    self._write(self._guest_nodes(domid))
                shown = there
            except XenvirtioError as error:
                log.warning("could not look at the guests: %s", error)
        if control is not None:
            control.close()

    def _living(self, control: DomainControl | None) -> set[DomId]:
        """The guests that are there. Only the control domain sees one die while its pages are still mapped here."""
        if control is None:
            return {domid for domid in self._guests if self._exists(domid)}
        return {info.domid for info in control.domains() if not info.is_dying}.intersection(self._guests)

    def _exists(self, domid: DomId) -> bool:
        try:
            model = self._hypervisor.open_device_model(domid)
        except HypervisorError as error:
            return error.errno not in DOMAIN_GONE
        try:
            model.nr_vcpus()
        except HypervisorError as error:
            return error.errno not in DOMAIN_GONE  # that we may not ask is no sign of its death
        finally:
            model.close()
        return True

    def _open_control(self) -> DomainControl | None:
        try:
            return self._hypervisor.open_domain_control()
        except HypervisorError as error:
            log.debug("%s", error)
            return None


def served_devices(plan: Plan) -> list[PlannedDevice]:
    """The devices of a plan that its domain serves through virtio-mmio."""
    return [
        device for device in plan.devices if device.role is Role.BACKEND and device.transport is Transport.MMIO
    ]
