"""The long-running part of `xenvirtio serve`: follows XenStore and keeps one backend per guest in step with it.

There is one path for start-up, change, restart and a XenStore that went away: list everything below the watched
directories, compare with what runs, act on the difference. Event paths are only a hint that something changed.

Backend state, as libxl sees it (reference: xen docs/misc/xenstore-paths.pandoc, tools/libs/light/libxl_device.c):
Initialising -> (range claimed, server enabled) -> InitWait; `state`=Closing, `online`=0 or a vanished directory ->
queues stopped, memory unmapped -> Closed, leaf removed. A guest's reboot is a new domid.
"""

from __future__ import annotations

import logging
import os
import select
import time
from collections.abc import Callable
from dataclasses import dataclass

from xenvirtio.daemon.configuration import Configuration
from xenvirtio.daemon.device_factory import DeviceFactory
from xenvirtio.daemon.entries import KINDS, EntryPath, XenbusState, parse_entry
from xenvirtio.daemon.guest import GuestBackend, GuestIdentity
from xenvirtio.daemon.state_file import DeviceKey
from xenvirtio.errors import ConfigurationError, XenStoreError, XenvirtioError
from xenvirtio.ids import DomId
from xenvirtio.virtio.device import Device
from xenvirtio.xen.capabilities import Hypervisor
from xenvirtio.xenstore.client import Operations, XenStoreClient

log = logging.getLogger("xenvirtio.serve")

RETRY_S = 1.0
"""Until the next look at a XenStore that could not be read; it may have been slow, and then no event will follow."""

RELEASE_DOMAIN = "@releaseDomain"
DOMID_MAX = 0x7FEF
"""Xen's domain numbers end here (DOMID_FIRST_RESERVED); the kernel's interfaces would cut a larger one to 16 bits."""

DEVID_MAX = (1 << 32) - 1
GOING = (XenbusState.CLOSING, XenbusState.CLOSED)


@dataclass(frozen=True, slots=True)
class _Found:
    """A backend directory as it is now."""

    path: EntryPath
    state: int
    online: bool
    keys: dict[str, str]

    @property
    def is_going(self) -> bool:
        return not self.online or self.state in GOING


class Supervisor:
    """Serves every guest that XenStore shows, until `stop`."""

    def __init__(self, hypervisor: Hypervisor, store: XenStoreClient, configuration: Configuration) -> None:
        self._hypervisor = hypervisor
        self._store = store
        self._configuration = configuration
        self._state_dir = configuration.daemon.state_dir
        """Where it was at the start: its lock is held, and running guests have their files there."""
        self._factory = DeviceFactory(configuration)
        self._guests: dict[DomId, GuestBackend] = {}
        self._served: dict[EntryPath, DeviceKey] = {}
        self._complained: dict[EntryPath, str] = {}
        self._wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._is_behind = False
        self._stopping = False
        self._wants_counters = False
        self._reload: Callable[[], Configuration] | None = None
        own = store.read_optional("domid")
        self._root = f"/local/domain/{own or 0}/backend"

    @property
    def guests(self) -> list[GuestBackend]:
        return list(self._guests.values())

    def stop(self) -> None:
        """Make `run` return soon. Safe from a signal handler."""
        self._stopping = True
        os.eventfd_write(self._wake_fd, 1)

    def request_reload(self, load: Callable[[], Configuration]) -> None:
        """Re-read the configuration soon. Safe from a signal handler."""
        self._reload = load
        os.eventfd_write(self._wake_fd, 1)

    def request_counters(self) -> None:
        """Log what every guest has cost so far, soon. Safe from a signal handler."""
        self._wants_counters = True
        os.eventfd_write(self._wake_fd, 1)

    def counters(self) -> dict[str, dict[str, object]]:
        """Totals by guest: `pump` (accesses, kicks, wakeups) and `devices`, each with `device_host.COUNTERS`."""
        return {
            guest.identity.name or str(guest.identity.domid): {
                "pump": guest.pump_counters(),
                "devices": guest.device_counters(),
            }
            for guest in self._guests.values()
        }

    def run(self) -> None:
        """Serve until `stop`; guests still alive then are left to a successor."""
        for kind in KINDS:
            self._store.watch(f"{self._root}/{kind}", kind)
        self._watch_deaths()
        self._sync_safely()
        log.info("ready", extra={"guests": len(self._guests)})
        try:
            while not self._stopping:
                timeout_s = RETRY_S if self._is_behind else None
                ready, _, _ = select.select([self._store.fileno(), self._wake_fd], [], [], timeout_s)
                if self._wake_fd in ready:
                    os.eventfd_read(self._wake_fd)
                if self._store.pump() or self._is_behind:  # one look at the store serves all events that wait
                    self._sync_safely()
                if self._reload is not None:
                    self._apply_reload()
                if self._wants_counters:
                    self._wants_counters = False
                    log.info("counters", extra={"guests": self.counters()})
        finally:
            for guest in self._guests.values():
                guest.release()
            self._guests.clear()
            os.close(self._wake_fd)

    def _watch_deaths(self) -> None:
        try:
            self._store.watch(RELEASE_DOMAIN, RELEASE_DOMAIN)
        except XenStoreError as error:
            log.info("domain deaths are not announced to us (%s); relying on the backend directories", error)

    def _apply_reload(self) -> None:
        load, self._reload = self._reload, None
        assert load is not None
        try:
            self._configuration = load()
        except ConfigurationError as error:
            log.error("configuration not changed: %s", error)
            return
        if self._configuration.daemon.state_dir != self._state_dir:
            log.warning("state_dir stays %s until the next start", self._state_dir)
        self._factory = DeviceFactory(self._configuration)
        self._complained.clear()
        for guest in self._guests.values():
            guest.refresh()
        log.info("configuration read again")
        self._sync_safely()

    def _sync_safely(self) -> None:
        try:
            self._is_behind = False
            self.sync()
        except XenvirtioError as error:
            # XenStore going away and coming back is a normal event.
            self._is_behind = True
            log.warning("could not follow XenStore: %s", error)

    def sync(self) -> None:
        """Make what runs agree with what XenStore shows."""
        found = {entry.path: entry for entry in self._find_entries()}
        for path in list(self._served):
            entry = found.get(path)
            if entry is None or entry.is_going:
                self._stop_serving(path, entry)
            elif entry.state == XenbusState.INITIALISING:
                self._write_state(path, XenbusState.INIT_WAIT)  # it did not get through before
        for path in [path for path in self._complained if path not in found]:
            del self._complained[path]
        for domid in sorted({path.domid for path in found}):
            wanted = [entry for path, entry in found.items() if path.domid == domid and path not in self._served]
            for entry in wanted:
                if entry.is_going and entry.state != XenbusState.CLOSED and self._is_ours(entry):
                    self._close_entry(entry.path)
            fresh = [entry for entry in wanted if not entry.is_going]
            if fresh:
                self._serve_guest(domid, fresh)
        self._reap(set(found))

    def _find_entries(self) -> list[_Found]:
        entries: list[_Found] = []
        for kind in KINDS:
            for domid in self._numbers(f"{self._root}/{kind}", DOMID_MAX):
                for devid in self._numbers(f"{self._root}/{kind}/{domid}", DEVID_MAX):
                    entry = self._read_entry(EntryPath(self._root, kind, DomId(domid), devid))
                    if entry is not None:
                        entries.append(entry)
        return entries

    def _numbers(self, path: str, largest: int) -> list[int]:
        try:
            names = self._store.directory(path)
        except XenStoreError as error:
            if error.name == "ENOENT":
                return []
            raise
        digits = len(str(largest))
        numbers = [int(name) for name in names if name.isascii() and name.isdigit() and len(name) <= digits]
        return sorted(number for number in numbers if number <= largest)

    def _read_entry(self, path: EntryPath) -> _Found | None:
        """Read one directory; None when it is not complete (its `state` is written in the same transaction)."""
        state = self._store.read_optional(f"{path}/state")
        if state is None or not (state.isascii() and state.isdigit()):
            return None
        keys: dict[str, str] = {}
        for name in ("base", "irq", "type", "transport", "params", "mode", "online", "grant_usage"):
            value = self._store.read_optional(f"{path}/{name}")
            if value is not None:
                keys[name] = value
        return _Found(path, int(state), keys.get("online", "1") != "0", keys)

    def _serve_guest(self, domid: DomId, entries: list[_Found]) -> None:
        identity = self._identify(domid)
        made = [(entry, *parts) for entry in entries if (parts := self._make(identity, entry)) is not None]
        if not made:
            return  # the guest is not touched for devices that cannot be served
        try:
            guest = self._guests.get(domid)
            if guest is None:
                guest = GuestBackend(self._hypervisor, identity, self._state_dir)
                self._guests[domid] = guest
                log.info("guest found", extra={"guest": str(identity), "adopted": guest.adopted})
        except XenvirtioError as error:
            self._is_behind = True
            for entry, _, device, _ in made:
                device.close()
                self._complain_once(entry.path, f"{identity}: {error}")
            return
        for entry, key, device, transport_features in made:
            self._attach(guest, entry, key, device, transport_features)
        try:
            guest.start()
        except XenvirtioError as error:
            # Nobody has been told that the devices are ready; the next look tries again.
            self._is_behind = True
            self._complain_once(made[0][0].path, f"{identity}: {error}")
            self._drop_guest(domid, is_gone=not guest.adopted)
            return
        for entry, *_ in made:
            if entry.path in self._served and entry.state == XenbusState.INITIALISING:
                self._write_state(entry.path, XenbusState.INIT_WAIT)

    def _make(self, identity: GuestIdentity, entry: _Found) -> tuple[DeviceKey, Device, int] | None:
        """Make the device of an entry: (key, device, transport features), or None and a complaint."""
        try:
            parsed = parse_entry(entry.path, entry.keys)
            plan = self._factory.plan(identity, parsed)
            if plan is None:
                return None
            device = plan.make()
        except XenvirtioError as error:
            self._complain_once(entry.path, str(error))
            return None
        key = DeviceKey(entry.path.kind, entry.path.devid, parsed.device_type, parsed.base, parsed.irq)
        return key, device, plan.transport_features

    def _attach(
        self, guest: GuestBackend, entry: _Found, key: DeviceKey, device: Device, transport_features: int
    ) -> None:
        try:
            guest.attach(key, device, transport_features, was_running=entry.state != XenbusState.INITIALISING)
        except XenvirtioError as error:
            device.close()
            self._complain_once(entry.path, str(error))
            return
        self._served[entry.path] = key

    def _identify(self, domid: DomId) -> GuestIdentity:
        home = f"/local/domain/{domid}"
        vm = self._read_quietly(f"{home}/vm") or ""
        return GuestIdentity(domid, self._read_quietly(f"{home}/name") or "", vm.rpartition("/")[2])

    def _read_quietly(self, path: str) -> str | None:
        try:
            return self._store.read_optional(path)
        except XenStoreError as error:
            if error.name == "ETIMEDOUT":
                raise  # taken for another guest, it would lose the state that is on record for it
            return None  # a driver domain may not look

    def _complain_once(self, path: EntryPath, problem: str) -> None:
        if self._complained.get(path) != problem:
            self._complained[path] = problem
            log.warning("not served: %s", problem, extra={"entry": str(path)})

    def _is_ours(self, entry: _Found) -> bool:
        """Say whether we would serve such an entry, so that other backends' are left to them."""
        if entry.path in self._complained:
            return True
        try:
            return self._factory.serves(parse_entry(entry.path, entry.keys))
        except ConfigurationError:
            return False

    def _stop_serving(self, path: EntryPath, entry: _Found | None) -> None:
        key = self._served.pop(path)
        guest = self._guests.get(path.domid)
        if guest is not None:
            guest.detach(key)
        if entry is not None:
            self._close_entry(path)

    def _close_entry(self, path: EntryPath) -> None:
        """Say Closed and remove the leaf, as libxl waits for either."""
        self._write_state(path, XenbusState.CLOSED)
        try:
            self._store.rm(str(path))
        except XenStoreError as error:
            log.debug("%s", error)

    def _write_state(self, path: EntryPath, state: XenbusState) -> None:
        def write(transaction: Operations) -> None:
            if transaction.read_optional(f"{path}/state") is not None:  # never bring a removed directory back
                transaction.write(f"{path}/state", str(int(state)))

        try:
            self._store.transact(write)
        except XenStoreError as error:
            log.debug("%s", error)

    def _reap(self, found: set[EntryPath]) -> None:
        """Tear down guests none of whose devices is left, or who died without a word in XenStore."""
        for domid, guest in list(self._guests.items()):
            shown = {(path.kind, path.devid) for path in found if path.domid == domid}
            # A device on record that is shown but cannot be served now counts too, and keeps its range: without it the
            # guest's next access there would crash it.
            kept = [key for key in [*guest.attached, *guest.recorded] if (key.kind, key.devid) in shown]
            if kept and guest.is_alive():
                for key in guest.recorded:
                    if (key.kind, key.devid) not in shown:
                        guest.detach(key)
                continue
            self._drop_guest(domid)

    def _drop_guest(self, domid: DomId, *, is_gone: bool = True) -> None:
        """Take a guest's backend down; with `is_gone` false it is left to a later attempt, for it lives."""
        guest = self._guests.pop(domid)
        started = time.monotonic()
        if is_gone:
            guest.destroy()
        else:
            guest.release()
        for path in [path for path in self._served if path.domid == domid]:
            del self._served[path]
        seconds = round(time.monotonic() - started, 3)
        log.info("guest gone", extra={"guest": str(guest.identity), "seconds": seconds})
