"""IOREQ servers of one guest, and their pages as Xen lays them out.

Source: xen/include/public/hvm/ioreq.h, xen/common/ioreq.c (4.20).
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import IntEnum

from xenvirtio.ids import PAGE_SIZE, DomId, ServerId
from xenvirtio.xen import libc
from xenvirtio.xen.emulated.event_channel import Port
from xenvirtio.xen.emulated.rangeset import RangeSet
from xenvirtio.xen.emulated.refusal import Refusal

MAX_SERVERS = 8
MAX_RANGES = 256

_SLOT = struct.Struct("<QQIIIHBB")
_DATA_OFFSET = 8
_PORT_OFFSET = 24
_STATE_OFFSET = 30
_STATE_MASK = 0x0F
_DIR_READ = 1 << 5


class SlotState(IntEnum):
    NONE = 0
    READY = 1
    INPROCESS = 2
    RESPONSE_READY = 3


class RequestType(IntEnum):
    COPY = 1
    INVALIDATE = 8


@dataclass(frozen=True, slots=True)
class Request:
    """What a vCPU asks of a device model."""

    kind: RequestType
    address: int
    size: int
    is_read: bool
    data: int


class IoreqSlot:
    """The 32 bytes of one vCPU in a server's page, seen from Xen's side."""

    def __init__(self, address: int) -> None:
        self._address = address
        self._bytes = (ctypes.c_char * _SLOT.size).from_address(address)
        self._state = ctypes.c_uint8.from_address(address + _STATE_OFFSET)
        self._data = ctypes.c_uint64.from_address(address + _DATA_OFFSET)
        self._port = ctypes.c_uint32.from_address(address + _PORT_OFFSET)

    @property
    def state(self) -> int:
        return self._state.value & _STATE_MASK

    @property
    def data(self) -> int:
        return self._data.value

    @property
    def port(self) -> int:
        return self._port.value

    @port.setter
    def port(self, number: int) -> None:
        self._port.value = number

    def publish(self, request: Request) -> None:
        """Fill the slot; the state byte last, since it hands the slot over."""
        bits = _DIR_READ if request.is_read else 0
        _SLOT.pack_into(
            self._bytes, 0, request.address, request.data, 1, request.size, self.port, 0, bits, request.kind
        )
        self._state.value = bits | SlotState.READY

    def clear(self) -> None:
        self._state.value &= ~_STATE_MASK & 0xFF


class IoreqPage:
    """The synchronous page of a server; stays readable for whoever mapped it, also when the server is gone."""

    def __init__(self) -> None:
        self.descriptor = os.memfd_create("xen-ioreq", os.MFD_CLOEXEC)
        os.ftruncate(self.descriptor, PAGE_SIZE)
        self._address = libc.mmap(PAGE_SIZE, libc.protection(writable=True), libc.MAP_SHARED, self.descriptor)
        weakref.finalize(self, _release_page, self.descriptor, self._address)

    def slot(self, vcpu: int) -> IoreqSlot:
        return IoreqSlot(self._address + vcpu * _SLOT.size)


def _release_page(descriptor: int, address: int) -> None:
    libc.munmap(address, PAGE_SIZE)
    os.close(descriptor)


class IoreqServer:
    """One server: it belongs to the domain that created it and outlives that domain's processes."""

    def __init__(self, emulator: DomId, ports: list[Port]) -> None:
        self.emulator = emulator
        self.ports = ports
        """One event channel per vCPU, the guest's end."""
        self.ranges = RangeSet(MAX_RANGES)
        self.is_enabled = False
        self.page: IoreqPage | None = None
        self.orphans: frozenset[int] = frozenset()
        """The vCPUs whose request was unanswered when the server was destroyed."""

    def acquire_page(self) -> IoreqPage:
        if self.page is None:
            self.page = IoreqPage()
        return self.page

    def set_state(self, *, enabled: bool) -> None:
        if enabled and not self.is_enabled and self.page is not None:
            # Only here do the ports become known: a page acquired later says 0 until the next 0 -> 1.
            for vcpu, port in enumerate(self.ports):
                self.page.slot(vcpu).port = port.number
        self.is_enabled = enabled

    def orphan_waiting(self) -> None:
        """Take no more requests; the vCPUs that wait here have nobody left to wake them."""
        self.is_enabled = False
        page = self.page
        if page is not None:
            unanswered = (SlotState.READY, SlotState.INPROCESS)
            self.orphans = frozenset(i for i in range(len(self.ports)) if page.slot(i).state in unanswered)


class IoreqServers:
    """The eight places for servers of one guest. The caller holds the domain's lock."""

    def __init__(self, allocate_ports: Callable[[DomId], list[Port]], close_port: Callable[[Port], None]) -> None:
        self._allocate_ports = allocate_ports
        self._close_port = close_port
        self._servers: dict[ServerId, IoreqServer] = {}

    def create(self, emulator: DomId) -> ServerId:
        number = next((ServerId(i) for i in range(MAX_SERVERS) if i not in self._servers), None)
        if number is None:
            raise Refusal(errno.ENOSPC)
        self._servers[number] = IoreqServer(emulator, self._allocate_ports(emulator))
        return number

    def get(self, number: ServerId, emulator: DomId) -> IoreqServer:
        """Return a server that `emulator` created."""
        server = self._servers.get(number)
        if server is None:
            raise Refusal(errno.ENOENT)
        if server.emulator != emulator:
            raise Refusal(errno.EPERM)
        return server

    def map_range(self, number: ServerId, emulator: DomId, start: int, end: int) -> None:
        if start > end:
            raise Refusal(errno.EINVAL)
        ranges = self.get(number, emulator).ranges
        if ranges.overlaps(start, end):
            raise Refusal(errno.EEXIST)
        ranges.add(start, end)

    def unmap_range(self, number: ServerId, emulator: DomId, start: int, end: int) -> None:
        if start > end:
            raise Refusal(errno.EINVAL)
        ranges = self.get(number, emulator).ranges
        if not ranges.contains(start, end):
            raise Refusal(errno.ENOENT)
        ranges.remove(start, end)

    def destroy(self, number: ServerId, emulator: DomId) -> None:
        """Forget a server. A vCPU that waits in it is never woken: nothing is left that would."""
        self._drop(number, self.get(number, emulator))

    def destroy_all(self) -> None:
        for number, server in list(self._servers.items()):
            self._drop(number, server)

    def _drop(self, number: ServerId, server: IoreqServer) -> None:
        server.orphan_waiting()
        for port in server.ports:
            self._close_port(port)
        del self._servers[number]

    def enabled(self) -> Iterator[IoreqServer]:
        """The enabled servers, newest place first."""
        newest_first = (self._servers[number] for number in sorted(self._servers, reverse=True))
        return (server for server in newest_first if server.is_enabled)

    def select(self, address: int, size: int) -> IoreqServer | None:
        """Return the server that claims the whole access; the newest place wins."""
        return next((s for s in self.enabled() if s.ranges.contains(address, address + size - 1)), None)
