"""Answers a guest's device accesses: the loop between the event channel and the IOREQ slots.

A vCPU stands still from its access until the slot says RESPONSE_READY and the port is notified, so an access is
answered first and the work it asks for is done afterwards. What runs on every request (doorbell, interrupt status,
interrupt acknowledge) is answered here from the register page; everything else goes to the device's transport.

A slot moves READY -> INPROCESS -> RESPONSE_READY and never back: Xen kills a guest whose slot does. A slot found
INPROCESS belongs to us only when its former owner is dead (`adopt`).

Source: xen/common/ioreq.c, wait_for_io; xen/include/public/hvm/ioreq.h.
"""

from __future__ import annotations

import logging
from array import array
from collections.abc import Callable, Sequence
from typing import Protocol

from xenvirtio.errors import HypervisorError, UsageError
from xenvirtio.ids import EventPort
from xenvirtio.ioreq.page import (
    DATA,
    DIRECTION_READ,
    FLAGS,
    SIZE,
    SLOT_BYTES,
    STATE_MASK,
    TYPE,
    RequestType,
    SlotState,
)
from xenvirtio.memory.buffer import HostBuffer
from xenvirtio.xen.capabilities import EventChannels

try:
    import cython
except ImportError:
    from xenvirtio import interpreted as cython

if not cython.compiled:
    from xenvirtio.memory.raw import (
        and_u32,
        fence,
        ioctl,
        load_u8,
        load_u32,
        load_u64,
        read,
        store_u8,
        store_u32,
        store_u64,
        wait_readable,
        write,
    )

log = logging.getLogger("xenvirtio.ioreq")

KEEP_FLAGS = 0xF0
"""All of the flags byte but the state."""

READY = int(SlotState.READY)
INPROCESS = int(SlotState.INPROCESS)
RESPONSE_READY = int(SlotState.RESPONSE_READY)
TYPE_COPY = int(RequestType.COPY)
TYPE_INVALIDATE = int(RequestType.INVALIDATE)

REG_QUEUE_NOTIFY = 0x50
REG_INTERRUPT_STATUS = 0x60
REG_INTERRUPT_ACK = 0x64

IOCTL_EVTCHN_NOTIFY = 0x44504
PORT_BYTES = 4
PORTS_PER_READ = 1024
ALL_ONES = 0xFFFFFFFFFFFFFFFF


class RegisterAccess(Protocol):
    """A transport as the pump sees it; neither method may raise."""

    def read(self, offset: int, size: int) -> int: ...
    def write(self, offset: int, size: int, value: int) -> None: ...


class DeviceWindow:
    """One device's register range [base, base + length): where its fast registers and doorbells are.

    `interrupt_status` is the host address of the u32 behind INTERRUPT_STATUS. `kick_fds[i]` is the eventfd of queue i,
    -1 while it does not run.
    """

    def __init__(self, base: int, length: int, interrupt_status: int, queues: int, transport: RegisterAccess) -> None:
        self.base = base
        self.length = length
        self.interrupt_status = interrupt_status
        self.transport = transport
        self.queues = queues
        self.kick_fds = memoryview(array("i", [-1] * max(queues, 1)))


class IoreqPump:
    """Serves all vCPUs of one guest. `serve` runs in a thread of its own; windows may come and go meanwhile.

    `ports[i]` is the local port bound for vCPU i. `invalidate` is called for a change of the guest's memory map and
    must return before the vCPU goes on.
    """

    def __init__(
        self, page: int, ports: Sequence[EventPort], events: EventChannels, invalidate: Callable[[], None]
    ) -> None:
        self._page = page
        self._vcpus = len(ports)
        self._ports = memoryview(array("I", ports))
        self._events = events
        self._fd = events.fileno()
        # Xen's own event-channel node takes plain reads, writes and one ioctl; others are asked through their methods.
        self._is_evtchn_node = bool(getattr(events, "is_evtchn_node", False))
        self._invalidate = invalidate
        self._windows: tuple[DeviceWindow, ...] = ()
        self._buffer = HostBuffer(PORT_BYTES * PORTS_PER_READ + 16)
        self._pending = self._buffer.address
        self._scratch = self._buffer.address + PORT_BYTES * PORTS_PER_READ
        store_u64(self._scratch, 1)
        self._doorbell_fd = -1
        self.accesses = 0
        self.kicks = 0
        self.wakeups = 0

    def set_windows(self, windows: Sequence[DeviceWindow]) -> None:
        """Replace the set of served register ranges at once."""
        self._windows = tuple(windows)

    def serve(self, control_fd: int) -> None:
        """Answer accesses until `control_fd` becomes readable; what was pending by then is answered first, once.

        Once: a guest whose vCPUs take turns always has something pending, and must not keep its caller away for ever.
        """
        while True:
            ready = wait_readable(self._fd, control_fd, -1)
            if ready > 0 and ready & 1:
                self.handle_events()
            if ready > 0 and ready & 2:
                return

    def handle_events(self) -> int:
        """Take the pending ports, unmask them, answer their slots; return how many accesses were answered."""
        self.wakeups += 1
        if self._is_evtchn_node:
            return self._handle_node_events()
        ports = self._events.read()
        # Unmask before looking at the slots: an event that comes in between is then delivered again, never lost.
        self._events.unmask(ports)
        answered = 0
        for port in ports:
            answered += self._handle_port(port)
        return answered

    def _handle_node_events(self) -> int:
        length = read(self._fd, self._pending, PORT_BYTES * PORTS_PER_READ)
        if length <= 0:
            return 0
        write(self._fd, self._pending, length)
        answered = 0
        for position in range(length // PORT_BYTES):
            answered += self._handle_port(load_u32(self._pending + PORT_BYTES * position))
        return answered

    def _handle_port(self, port: int) -> int:
        for vcpu in range(self._vcpus):
            if self._ports[vcpu] == port:
                return self._handle_slot(vcpu, False)
        return 0

    def scan(self, adopt: bool = False) -> int:
        """Answer every slot that waits, event or not; with `adopt` also those a dead owner left INPROCESS."""
        answered = 0
        for vcpu in range(self._vcpus):
            answered += self._handle_slot(vcpu, adopt)
        return answered

    def is_idle(self) -> bool:
        """Say whether no vCPU has an access under way."""
        busy = 0
        for vcpu in range(self._vcpus):
            busy |= load_u8(self._page + SLOT_BYTES * vcpu + FLAGS) & STATE_MASK
        return busy == 0

    def _handle_slot(self, vcpu: int, adopt: bool) -> int:
        slot = self._page + SLOT_BYTES * vcpu
        flags = load_u8(slot + FLAGS)
        if flags & STATE_MASK != READY and not (adopt and flags & STATE_MASK == INPROCESS):
            if adopt and flags & STATE_MASK == RESPONSE_READY:
                self._notify(vcpu)  # the dead owner may have answered and not told
            return 0  # otherwise the spurious event at binding, or one event for two
        flags &= KEEP_FLAGS
        store_u8(slot + FLAGS, flags | INPROCESS)
        self._doorbell_fd = -1
        kind = load_u8(slot + TYPE)
        if kind == TYPE_COPY:
            self._access(slot, flags)
        elif kind == TYPE_INVALIDATE:
            self._run_invalidate()
        else:
            store_u64(slot + DATA, ALL_ONES)
        self.accesses += 1
        fence()
        store_u8(slot + FLAGS, flags | RESPONSE_READY)
        fence()
        self._notify(vcpu)
        if self._doorbell_fd >= 0:
            self.kicks += 1
            write(self._doorbell_fd, self._scratch, 8)
        return 1

    def _access(self, slot: int, flags: int) -> None:
        address = load_u64(slot)
        size = load_u32(slot + SIZE)
        for window in self._windows:
            if window.base <= address and size <= window.length and address - window.base <= window.length - size:
                self._access_window(window, slot, address - window.base, size, flags)
                return
        store_u64(slot + DATA, ALL_ONES)

    def _access_window(self, window: DeviceWindow, slot: int, offset: int, size: int, flags: int) -> None:
        if flags & DIRECTION_READ:
            if size == 4 and offset == REG_INTERRUPT_STATUS:
                store_u64(slot + DATA, load_u32(window.interrupt_status))
            else:
                store_u64(slot + DATA, self._read(window, offset, size))
            return
        value = load_u64(slot + DATA)
        if size == 4 and offset == REG_QUEUE_NOTIFY:
            index = value & 0xFFFFFFFF
            if index < window.queues:
                self._doorbell_fd = window.kick_fds[index]
        elif size == 4 and offset == REG_INTERRUPT_ACK:
            and_u32(window.interrupt_status, ~value & 0xFFFFFFFF)
        else:
            self._write(window, offset, size, value)

    def _read(self, window: DeviceWindow, offset: int, size: int) -> int:
        try:
            return window.transport.read(offset, size) & ALL_ONES
        except Exception:
            # A bug of ours must not leave a vCPU waiting for ever.
            log.exception("register read failed", extra={"base": window.base, "offset": offset})
            return 0

    def _write(self, window: DeviceWindow, offset: int, size: int, value: int) -> None:
        try:
            window.transport.write(offset, size, value)
        except Exception:
            log.exception("register write failed", extra={"base": window.base, "offset": offset})

    def _run_invalidate(self) -> None:
        try:
            self._invalidate()
        except Exception:
            log.exception("dropping cached mappings failed")

    def _notify(self, vcpu: int) -> None:
        if self._is_evtchn_node:
            store_u32(self._scratch + 8, self._ports[vcpu])
            if ioctl(self._fd, IOCTL_EVTCHN_NOTIFY, self._scratch + 8) < 0:
                log.warning("vCPU %d could not be notified: the guest is gone", vcpu)
            return
        try:
            self._events.notify(EventPort(self._ports[vcpu]))
        except (HypervisorError, UsageError) as error:
            log.warning("vCPU %d could not be notified: %s", vcpu, error)
