"""Everything that runs for one guest: one IOREQ server, one pump thread, its devices.

Order matters here more than anywhere; the rules were learned on real Xen:

- a range is claimed before the server is enabled and before XenStore says InitWait, or the guest takes a data abort;
- the page is mapped before the server is enabled, or `vp_eport` stays 0;
- a server is never destroyed with an access in flight: that vCPU would stand still for ever. So: unmap the ranges,
  answer until every slot is idle, wait a moment, destroy - and only when the guest is gone or the device removed;
- a process that ends while the guest lives destroys nothing: its successor maps the same server again, binds the
  event channels anew, answers what waits (READY and INPROCESS) and goes on.
"""

from __future__ import annotations

import errno
import logging
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

from xenvirtio.daemon.device_host import DeviceHost, GuestAccess
from xenvirtio.daemon.entries import WINDOW_BYTES
from xenvirtio.daemon.state_file import DeviceKey, GuestState
from xenvirtio.errors import GuestError, HypervisorError, ResourceError, XenvirtioError
from xenvirtio.ids import DomId, EventPort, RemotePort, ServerId, Spi
from xenvirtio.ioreq.page import VP_EPORT, slot_address
from xenvirtio.ioreq.pump import IoreqPump
from xenvirtio.memory.foreign import ForeignChunks
from xenvirtio.memory.raw import load_u32
from xenvirtio.virtio.device import Device
from xenvirtio.xen.capabilities import Hypervisor, Mapping

log = logging.getLogger("xenvirtio.guest")

DRAIN_LIMIT_S = 2.0
"""How long teardown waits for accesses under way; with the ranges unmapped none can follow, so this is ample."""

GRACE_S = 0.05
"""Between the last answered access and destroying the server; seen to be enough on real Xen, where 0 was not."""

DOMAIN_GONE = (errno.ESRCH, errno.EINVAL)
"""No such domain, or one that is being destroyed. Anything else may pass, and the guest lives."""

SERVER_GONE = (errno.ENOENT, errno.EPERM, errno.ESRCH)
"""No such IOREQ server, or one of another domain (xen/common/ioreq.c, ioreq_server_get_frame)."""

PUMP_RETRY_S = 1.0
"""After a failure of the event channels themselves."""


@dataclass(frozen=True, slots=True)
class GuestIdentity:
    domid: DomId
    name: str
    uuid: str

    def __str__(self) -> str:
        return f"{self.name or 'domain'} ({self.domid})"


class GuestBackend:
    """The backend of one guest. Methods are for the supervising thread; device state changes run on the pump thread."""

    def __init__(self, hypervisor: Hypervisor, identity: GuestIdentity, state_dir: Path) -> None:
        self.identity = identity
        domid = identity.domid
        self._closing: list[Callable[[], None]] = []
        self._thread: threading.Thread | None = None
        self._stopping = False
        self._hosts: dict[DeviceKey, DeviceHost] = {}
        self._calls: deque[tuple[Callable[[], None], Future[None]]] = deque()
        try:
            self._model = hypervisor.open_device_model(domid)
            self._closing.append(self._model.close)
            self._events = hypervisor.open_event_channels(domid)
            self._closing.append(self._events.close)
            foreign = hypervisor.open_foreign_memory(domid)
            self._closing.append(foreign.close)
            grants = hypervisor.open_grants()
            self._closing.append(grants.close)
            self._control_fd = os.eventfd(0, os.EFD_CLOEXEC)
            self._closing.append(lambda: os.close(self._control_fd))
            self._chunks = ForeignChunks(foreign, domid)
            self._closing.append(self._chunks.drop)
            self._access = GuestAccess(domid, self._model, foreign, grants, self._chunks)
            self._state = GuestState(state_dir / f"guest-{domid}.state", domid, identity.uuid)
            self._closing.append(self._state.close)
            self._vcpus = self._model.nr_vcpus()
            self._page, self._server, self.adopted = self._obtain_server()
            self._closing.append(self._page.close)
        except XenvirtioError:
            self._close_all()
            raise
        except OSError as error:
            self._close_all()
            raise ResourceError(f"{identity}: {error}") from error
        self._pump: IoreqPump | None = None

    def _obtain_server(self) -> tuple[Mapping, ServerId, bool]:
        """Map a predecessor's server again, or create one."""
        inherited = self._state.server
        if inherited is not None:
            try:
                return self._model.map_ioreq_page(inherited), inherited, True
            except HypervisorError as error:
                if error.errno not in SERVER_GONE:
                    raise  # it is still there: a second one beside it would strand the guest
                log.warning("the recorded IOREQ server is gone: %s", error, extra={"guest": str(self.identity)})
                self._state.forget_devices()
        server = self._model.create_ioreq_server()
        self._state.server = server
        return self._model.map_ioreq_page(server), server, False

    @property
    def recorded(self) -> list[DeviceKey]:
        """Devices that a predecessor served and this process has not attached (yet)."""
        return [key for key in self._state.recorded() if key not in self._hosts] if self.adopted else []

    @property
    def attached(self) -> list[DeviceKey]:
        return list(self._hosts)

    def start(self) -> None:
        """Enable the server, bind one port per vCPU, answer what waits and begin to serve."""
        if self._thread is not None:
            return
        self._model.set_server_state(self._server, enabled=True)
        ports: list[EventPort] = []
        for vcpu in range(self._vcpus):
            remote = load_u32(slot_address(self._page.address, vcpu) + VP_EPORT)
            ports.append(self._events.bind_interdomain(self.identity.domid, RemotePort(remote)))
        self._pump = IoreqPump(self._page.address, ports, self._events, self._invalidate)
        self._pump.set_windows([host.window for host in self._hosts.values()])
        self._pump.scan(self.adopted)
        if self.adopted:
            for host in self._hosts.values():
                host.transport.notify_used()  # the scan may have repeated an acknowledgement and lost one
        self._thread = threading.Thread(target=self._run, name=f"ioreq {self.identity.domid}", daemon=True)
        self._thread.start()

    def attach(self, key: DeviceKey, device: Device, transport_features: int, *, was_running: bool) -> None:
        """Claim the device's range and serve it; take over where a predecessor left it.

        `was_running` says that a backend had this device connected before; where nothing is known of its state, the
        driver is asked to reset.
        """
        try:
            self._on_pump(lambda: self._attach(key, device, transport_features, was_running))
        except OSError as error:
            raise ResourceError(f"{self.identity}: {error}") from error

    def _attach(self, key: DeviceKey, device: Device, transport_features: int, was_running: bool) -> None:
        slot = self._state.find(key) if self.adopted else None
        restored = slot is not None
        if slot is None:
            slot = self._state.claim(key)
        name = f"{self.identity.name or self.identity.domid}/{key.kind}/{key.devid}"
        try:
            host = DeviceHost(
                name,
                device,
                self._state.registers_address(slot),
                key.base,
                WINDOW_BYTES,
                Spi(key.irq),
                self._access,
                transport_features,
            )
        except (XenvirtioError, OSError):
            if not restored:
                self._state.release(slot)
            raise
        try:
            self._map_range(key)
        except XenvirtioError:
            host.stop()
            if not restored:
                self._state.release(slot)
            raise
        self._hosts[key] = host
        if restored:
            host.transport.restore()
        elif was_running:
            host.transport.fail(GuestError("connected to a backend before, whose state is not known"))
        self._update_windows()
        log.info("device attached", extra={"device": name, "base": hex(key.base), "irq": key.irq, "restored": restored})

    def _map_range(self, key: DeviceKey) -> None:
        try:
            self._model.map_io_range(self._server, key.base, key.base + WINDOW_BYTES - 1)
        except HypervisorError as error:
            if not (self.adopted and error.errno == errno.EEXIST):
                raise

    def detach(self, key: DeviceKey) -> None:
        """Stop the device and give its range back. For a device that is removed, or whose guest is gone."""
        host = self._hosts.get(key)
        if host is not None:
            host.abandon()
        self._on_pump(lambda: self._detach(key))

    def _detach(self, key: DeviceKey) -> None:
        host = self._hosts.pop(key, None)
        if host is not None:
            host.stop()
        self._ignore_dead_guest(
            lambda: self._model.unmap_io_range(self._server, key.base, key.base + WINDOW_BYTES - 1)
        )
        slot = self._state.find(key)
        if slot is not None:
            self._state.release(slot)
        self._update_windows()
        log.info("device detached", extra={"guest": str(self.identity), "kind": key.kind, "devid": key.devid})

    def is_alive(self) -> bool:
        """Say whether the domain still exists and is not being destroyed."""
        try:
            self._model.nr_vcpus()
        except HypervisorError as error:
            return error.errno not in DOMAIN_GONE
        return True

    def device_counters(self) -> dict[str, dict[str, int]]:
        return {host.name: host.counters() for host in list(self._hosts.values())}

    def pump_counters(self) -> dict[str, int]:
        pump = self._pump
        if pump is None:
            return {"accesses": 0, "kicks": 0, "wakeups": 0}
        return {"accesses": pump.accesses, "kicks": pump.kicks, "wakeups": pump.wakeups}

    def refresh(self) -> None:
        """Let every device look again at what the host provides (a grown disk)."""
        for host in list(self._hosts.values()):
            resize = getattr(host.device, "resize", None)
            if resize is not None:
                try:
                    resize()
                except (OSError, XenvirtioError) as error:
                    log.warning("%s: its size cannot be read: %s", host.name, error)

    def release(self) -> None:
        """End this process's part and leave the guest to a successor: nothing is destroyed."""
        self._abandon()
        self._stop_thread()
        for host in self._hosts.values():
            host.stop()
        if self._pump is not None:
            self._pump.set_windows([])
        self._close_all()

    def destroy(self) -> None:
        """Take everything down: the guest is gone or has no device of ours any more."""
        self._abandon()
        for key in [*self._hosts, *self.recorded]:
            self.detach(key)
        self._stop_thread()
        if self._pump is not None:
            deadline = time.monotonic() + DRAIN_LIMIT_S
            self._drain(deadline)
            time.sleep(GRACE_S)
            self._drain(deadline)
        self._ignore_dead_guest(lambda: self._model.destroy_ioreq_server(self._server))
        self._close_all()
        self._state.remove()

    def _abandon(self) -> None:
        """Let no batch of the guest hold up what follows: it may be hours of work."""
        for host in list(self._hosts.values()):
            host.abandon()

    def _drain(self, deadline: float) -> None:
        """Answer accesses until no slot is busy; a dead guest's slots may stay so."""
        assert self._pump is not None
        while not self._pump.is_idle() and time.monotonic() < deadline:
            if self._pump.scan() == 0:
                if not self.is_alive():
                    return
                time.sleep(0.001)

    def _run(self) -> None:
        assert self._pump is not None
        while not self._stopping:
            try:
                self._pump.serve(self._control_fd)
            except Exception:
                # The supervisor asks this thread for things: without it, it would wait for ever.
                log.exception("accesses cannot be answered", extra={"guest": str(self.identity)})
                select.select([self._control_fd], [], [], PUMP_RETRY_S)
                continue
            os.eventfd_read(self._control_fd)
            while self._calls:
                call, future = self._calls.popleft()
                try:
                    call()
                except BaseException as error:
                    future.set_exception(error)
                else:
                    future.set_result(None)

    def _on_pump(self, call: Callable[[], None]) -> None:
        """Run `call` between two accesses of the guest; its errors come back to the caller."""
        if self._thread is None:
            call()
            return
        future: Future[None] = Future()
        self._calls.append((call, future))
        os.eventfd_write(self._control_fd, 1)
        future.result()

    def _stop_thread(self) -> None:
        if self._thread is not None:
            self._stopping = True
            os.eventfd_write(self._control_fd, 1)
            self._thread.join()
            self._thread = None

    def _update_windows(self) -> None:
        if self._pump is not None:
            self._pump.set_windows([host.window for host in self._hosts.values()])

    def _invalidate(self) -> None:
        action: Callable[[], None] = self._chunks.drop
        for host in self._hosts.values():
            action = _paused(host, action)
        action()

    def _ignore_dead_guest(self, call: Callable[[], None]) -> None:
        try:
            call()
        except HypervisorError as error:
            log.debug("%s", error)

    def _close_all(self) -> None:
        while self._closing:
            self._closing.pop()()


def _paused(host: DeviceHost, action: Callable[[], None]) -> Callable[[], None]:
    return lambda: host.while_paused(action)
