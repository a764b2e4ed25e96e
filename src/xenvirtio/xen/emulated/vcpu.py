"""A virtual CPU: the thread of a guest calls it to touch device registers, and is blocked until they are answered.

Source: xen/arch/arm/ioreq.c (try_fwd_ioserv), xen/common/ioreq.c (ioreq_send, wait_for_io).
"""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn

from xenvirtio.errors import UsageError
from xenvirtio.xen.emulated.ioreq import IoreqServer, IoreqSlot, Request, RequestType, SlotState

if TYPE_CHECKING:
    from xenvirtio.xen.emulated.domain import Domain

_ALL_ONES = (1 << 64) - 1


class VcpuStopped(Exception):  # noqa: N818 - not a fault of the program: the guest has come to its end
    """The guest does not run any more; its threads return."""


class DomainDestroyed(VcpuStopped):
    """The toolstack has destroyed the domain."""


class GuestCrashed(VcpuStopped):
    """Xen has crashed the domain."""


class DataAbort(GuestCrashed):
    """An access that no IOREQ server answers; a guest kernel oopses on it and the domain ends as crashed."""


class Vcpu:
    """One vCPU of a domain. It does one access at a time, whatever the number of threads that use it."""

    def __init__(self, domain: Domain, index: int, count: Callable[[str, int], None]) -> None:
        self.index = index
        self.is_waiting = False
        """True while a request of this vCPU is unanswered."""
        self._domain = domain
        self._count = count
        self._lock = threading.Lock()
        # Every Linux guest seen sent one INVALIDATE at boot, before it touched a device.
        self._invalidate_due = index == 0

    def mmio_read(self, address: int, size: int) -> int:
        """Read a device register.

        Raises:
            DataAbort: no IOREQ server claims the address, or the device model spoilt the slot.
            VcpuStopped: the domain ended meanwhile.
        """
        return self._access(address, size, is_read=True, data=0) & ((1 << 8 * size) - 1)

    def mmio_write(self, address: int, size: int, value: int) -> None:
        """Write a device register; returns when the write has been answered. Raises as `mmio_read` does."""
        self._access(address, size, is_read=False, data=value & ((1 << 8 * size) - 1))

    def invalidate(self) -> None:
        """Tell all device models to drop their foreign mappings, as Xen does when the memory map has changed."""
        with self._lock:
            self._domain.check_running()
            self._invalidate()

    def _access(self, address: int, size: int, *, is_read: bool, data: int) -> int:
        if size not in (1, 2, 4, 8):
            raise UsageError(f"an access of {size} bytes")
        with self._lock:
            self._domain.check_running()
            if self._invalidate_due:
                self._invalidate()
            self._count("mmio_exits", 1)
            request = Request(RequestType.COPY, address, size, is_read, data)
            with self._domain.lock:
                server = self._domain.servers.select(address, size)
                slot = None if server is None else self._send(server, request)
            if server is None or slot is None:
                self._abort(f"vcpu {self.index} at {address:#x}: no IOREQ server answers")
            return self._wait(server, slot)

    def _invalidate(self) -> None:
        self._invalidate_due = False
        request = Request(RequestType.INVALIDATE, 0, 4, False, _ALL_ONES)
        with self._domain.lock:
            sent = [(server, self._send(server, request)) for server in self._domain.servers.enabled()]
        for server, slot in sent:
            if slot is not None:
                self._count("invalidates", 1)
                self._wait(server, slot)

    def _send(self, server: IoreqServer, request: Request) -> IoreqSlot | None:
        """Post a request; None when the device model has left the slot unusable."""
        port = server.ports[self.index]
        if server.page is None:
            return None
        slot = server.page.slot(self.index)
        if slot.state != SlotState.NONE or slot.port != port.number:
            return None
        slot.publish(request)
        port.notify()
        self._count("events_to_backend", 1)
        return slot

    def _wait(self, server: IoreqServer, slot: IoreqSlot) -> int:
        previous = int(SlotState.NONE)
        with self._waiting():
            while (state := slot.state) != SlotState.NONE:
                if state < previous or state > SlotState.RESPONSE_READY:
                    self._domain.crash(f"Weird HVM ioreq state transition {previous} -> {state}")
                    self._domain.check_running()
                if state == SlotState.RESPONSE_READY:
                    data = slot.data
                    slot.clear()
                    return data
                previous = state
                self._sleep(server, slot, state)
        return _ALL_ONES

    def _sleep(self, server: IoreqServer, slot: IoreqSlot, state: int) -> None:
        """Block until the slot leaves `state` and an event says so."""
        event = server.ports[self.index].inbound
        poll = select.poll()
        poll.register(event, select.POLLIN)
        poll.register(self._domain.stopped, select.POLLIN)
        while slot.state == state or self.index in server.orphans:
            poll.poll()
            self._domain.check_running()
            if self.index in server.orphans:
                poll.unregister(event)  # from here on only the end of the domain counts
                continue
            self._count("events_to_guest", os.eventfd_read(event))

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        self.is_waiting = True
        try:
            yield
        finally:
            self.is_waiting = False

    def _abort(self, reason: str) -> NoReturn:
        self._domain.crash(f"data abort: {reason}")
        raise DataAbort(reason)
