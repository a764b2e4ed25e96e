"""The emulated hypervisor as a backend process sees it: the part that Linux's drivers play.

It keeps what the kernel keeps per open node (ports, masks, mappings) and asks the host for what Xen decides. Only
notifying, reading and unmasking events need no round trip.
"""

from __future__ import annotations

import array
import ctypes
import errno
import os
import select
import socket
import struct
import threading
from collections.abc import Iterable, Sequence
from typing import Protocol

from xenvirtio.errors import ConfigurationError, HypervisorError, UsageError
from xenvirtio.ids import PAGE_SIZE, DomId, EventPort, Gfn, GrantRef, RemotePort, ServerId, Spi
from xenvirtio.xen import libc
from xenvirtio.xen.capabilities import GrantedPages, StaticRegion
from xenvirtio.xen.emulated.argo_client import EmulatedArgo
from xenvirtio.xen.emulated.domain import DOM0
from xenvirtio.xen.emulated.domain_control import EmulatedDomainControl
from xenvirtio.xen.emulated.grant_table import GrantStatus
from xenvirtio.xen.emulated.refusal import Refusal
from xenvirtio.xen.emulated.session import COPY_ANSWER, COPY_REQUEST, Session
from xenvirtio.xen.emulated.wire import Message, receive, send
from xenvirtio.xen.hints import hypervisor_error
from xenvirtio.xen.mapping import OpenMappings, OwnedMapping

_EVENT = select.EPOLLIN | select.EPOLLONESHOT


class Transport(Protocol):
    """Carries a request to the host and the reply back; descriptors in the reply are the caller's."""

    def call(self, request: Message) -> Message: ...
    def close(self) -> None: ...


class DirectTransport:
    """To a host in this process."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def call(self, request: Message) -> Message:
        reply = self._session.handle(request)
        reply.descriptors = [os.dup(descriptor) for descriptor in reply.descriptors]
        return reply

    def close(self) -> None:
        self._session.close()


class SocketTransport:
    """To a host in another process; one request at a time."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._lock = threading.Lock()

    def call(self, request: Message) -> Message:
        try:
            with self._lock:
                send(self._connection, request)
                reply = receive(self._connection)
        except (EOFError, OSError) as error:
            raise Refusal(errno.ENODEV, "the emulated host is gone") from error
        if "errno" in reply.values:
            raise Refusal(reply.values["errno"])
        return reply

    def close(self) -> None:
        self._connection.close()


def connect_emulated(path: str | os.PathLike[str], domid: DomId = DOM0) -> EmulatedHypervisor:
    """Connect to a host that listens on `path`, as a backend that lives in domain `domid`."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.connect(os.fspath(path))
    except OSError:
        connection.close()
        raise
    transport = SocketTransport(connection)
    transport.call(Message("hello", {"domid": domid}))
    return EmulatedHypervisor(transport)


class EmulatedHypervisor:
    """`Hypervisor` over an emulated host."""

    def __init__(self, transport: Transport) -> None:
        self._kernel = _Kernel(transport)

    def open_event_channels(self, domid: DomId | None = None) -> EmulatedEventChannels:
        return EmulatedEventChannels(self._kernel, domid)

    def open_device_model(self, domid: DomId) -> EmulatedDeviceModel:
        return EmulatedDeviceModel(self._kernel, domid)

    def open_foreign_memory(self, domid: DomId) -> EmulatedForeignMemory:
        return EmulatedForeignMemory(self._kernel, domid)

    def open_grants(self) -> EmulatedGrants:
        return EmulatedGrants(self._kernel)

    def open_domain_control(self) -> EmulatedDomainControl:
        return EmulatedDomainControl(self._kernel.call)

    def open_argo(self) -> EmulatedArgo:
        return EmulatedArgo(self._kernel.call)

    def open_grant_allocator(self) -> EmulatedGrantAllocator:
        return EmulatedGrantAllocator(self._kernel)

    def map_static_region(self, identifier: str, address: int, length_bytes: int, *, how: str = "auto") -> StaticRegion:
        try:
            reply = self._kernel.call("map_static_region", {}, identifier.encode())
        except HypervisorError as error:
            if error.errno != errno.ENOENT:
                raise
            raise ConfigurationError(f"region {identifier!r}", "this domain has none of that id") from error
        length = reply.values["length"]
        where = map_pages(reply, range(0, length, PAGE_SIZE), writable=True)
        if length != length_bytes:
            libc.munmap(where, length)
            raise ConfigurationError(f"region {identifier!r}", f"has {length:#x} bytes, not {length_bytes:#x}")
        mapping = OwnedMapping(where, length, lambda: libc.munmap(where, length))
        return StaticRegion(mapping, is_cached=True, source="emulated host")

    def map_own_xenstore(self) -> tuple[OwnedMapping, RemotePort]:
        reply = self._kernel.call("map_own_xenstore", {})
        mapping = _mapping(self._kernel, reply, [reply.values["offset"]], OpenMappings(), writable=True)
        return mapping, RemotePort(reply.values["port"])

    def close(self) -> None:
        """Leave the host, as a process does that exits or is killed: everything it held there is dropped."""
        self._kernel.close()


class _Kernel:
    """Calls to the host, and memory shown to this process."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._windows: dict[int, tuple[int, int]] = {}
        self.windows_lock = threading.Lock()
        """Held while addresses from `window` are in use."""

    def call(
        self, operation: str, values: dict[str, int], raw: bytes = b"", descriptors: Sequence[int] = ()
    ) -> Message:
        try:
            return self._transport.call(Message(operation, values, raw, descriptors))
        except Refusal as refusal:
            raise hypervisor_error(operation, refusal.errno, values.get("domid")) from refusal

    def release(self, held: int) -> None:
        """Give a mapping up. When the host is gone, so is what it held."""
        try:
            self.call("release", {"held": held})
        except HypervisorError as error:
            if error.errno not in (errno.ENODEV, errno.EBADF):
                raise

    def window(self, number: int) -> int:
        """Return where all memory of a guest is mapped here. The caller holds `windows_lock`."""
        if number not in self._windows:
            reply = self.call("open_window", {"window": number})
            length = reply.values["length"]
            address = map_pages(reply, range(0, length, PAGE_SIZE), writable=True)
            self._windows[number] = address, length
            for dead in array.array("q", reply.raw):
                self._close_window(dead)
        return self._windows[number][0]

    def _close_window(self, number: int) -> None:
        if number in self._windows:
            libc.munmap(*self._windows.pop(number))

    def close(self) -> None:
        self._transport.close()
        with self.windows_lock:
            for number in list(self._windows):
                self._close_window(number)


def map_pages(reply: Message, offsets: Sequence[int], *, writable: bool) -> int:
    """Map pages of the file in a reply side by side, and close it; a negative offset leaves a hole."""
    flags = libc.MAP_PRIVATE | libc.MAP_ANONYMOUS | libc.MAP_NORESERVE
    address = libc.mmap(len(offsets) * PAGE_SIZE, libc.PROT_NONE, flags)
    prot = libc.protection(writable=writable)
    first = 0
    while first < len(offsets):
        after = first + 1
        while after < len(offsets) and offsets[first] >= 0 and offsets[after] == offsets[after - 1] + PAGE_SIZE:
            after += 1
        if offsets[first] >= 0:
            length, where = (after - first) * PAGE_SIZE, address + first * PAGE_SIZE
            libc.mmap(length, prot, libc.MAP_SHARED | libc.MAP_FIXED, reply.descriptors[0], offsets[first], where)
        first = after
    for descriptor in reply.descriptors:
        os.close(descriptor)
    return address


class EmulatedEventChannels:
    """`EventChannels`: an epoll over the eventfds of the bound ports, each switched off once it has fired."""

    def __init__(self, kernel: _Kernel, domid: DomId | None) -> None:
        self._kernel = kernel
        self._restricted_to = domid or None  # the kernel cannot restrict to domain 0
        self._epoll = select.epoll()
        self._outbound: dict[EventPort, int] = {}
        self._inbound: dict[EventPort, int] = {}
        self._port_of: dict[int, EventPort] = {}
        self._lock = threading.Lock()

    def fileno(self) -> int:
        return self._epoll.fileno()

    def bind_interdomain(self, domid: DomId, remote_port: RemotePort) -> EventPort:
        if self._restricted_to not in (None, domid):
            raise hypervisor_error("bind_interdomain", errno.EACCES, domid)
        return self._bound(self._kernel.call("bind_interdomain", {"domid": domid, "port": remote_port}))

    def bind_unbound(self, domid: DomId) -> EventPort:
        if self._restricted_to is not None:
            raise hypervisor_error("bind_unbound_port", errno.EACCES, domid)
        return self._bound(self._kernel.call("bind_unbound_port", {"domid": domid}))

    def bind_virq(self, virq: int) -> EventPort:
        if self._restricted_to is not None:
            raise hypervisor_error("bind_virq", errno.EACCES)
        return self._bound(self._kernel.call("bind_virq", {"virq": virq}))

    def bind_static(self, port: EventPort) -> EventPort:
        if port in self._inbound:
            raise hypervisor_error("bind_static", errno.EISCONN)
        return self._bound(self._kernel.call("bind_static", {"port": port}))

    def _bound(self, reply: Message) -> EventPort:
        port = EventPort(reply.values["port"])
        inbound, outbound = reply.descriptors
        with self._lock:
            self._inbound[port], self._outbound[port], self._port_of[inbound] = inbound, outbound, port
            self._epoll.register(inbound, _EVENT)
        return port

    def unbind(self, port: EventPort) -> None:
        with self._lock:
            if port not in self._inbound:
                raise hypervisor_error("unbind", errno.ENOTCONN)
            inbound, outbound = self._inbound.pop(port), self._outbound.pop(port)
            del self._port_of[inbound]
            self._epoll.unregister(inbound)
            os.close(inbound)
            os.close(outbound)
        self._kernel.call("unbind", {"port": port})

    def notify(self, port: EventPort) -> None:
        with self._lock:
            outbound = self._outbound.get(port)
            if outbound is None:
                raise hypervisor_error("notify", errno.ENOTCONN)
            os.eventfd_write(outbound, 1)

    def read(self) -> list[EventPort]:
        with self._lock:
            ports = []
            for inbound, _ in self._epoll.poll(0):
                ports.append(self._port_of[inbound])
                os.eventfd_read(inbound)
            return ports

    def unmask(self, ports: Iterable[EventPort]) -> None:
        with self._lock:
            for port in ports:
                if port in self._inbound:  # as the kernel, silent about others
                    self._epoll.modify(self._inbound[port], _EVENT)

    def close(self) -> None:
        for port in list(self._inbound):
            try:
                self.unbind(port)
            except HypervisorError as error:
                if error.errno not in (errno.ENODEV, errno.EBADF):
                    raise
        self._epoll.close()


class EmulatedDeviceModel:
    """`DeviceModel` on one guest."""

    def __init__(self, kernel: _Kernel, domid: DomId) -> None:
        self._kernel = kernel
        self._domid = domid
        self._irqfds: list[int] = []

    @property
    def domid(self) -> DomId:
        return self._domid

    def _call(self, operation: str, values: dict[str, int] | None = None, descriptors: Sequence[int] = ()) -> Message:
        return self._kernel.call(operation, {"domid": self._domid, **(values or {})}, descriptors=descriptors)

    def nr_vcpus(self) -> int:
        return self._call("nr_vcpus").values["vcpus"]

    def create_ioreq_server(self) -> ServerId:
        return ServerId(self._call("create_ioreq_server").values["server"])

    def map_io_range(self, server: ServerId, start: int, end: int) -> None:
        self._call("map_io_range", {"server": server, "start": start, "end": end})

    def unmap_io_range(self, server: ServerId, start: int, end: int) -> None:
        self._call("unmap_io_range", {"server": server, "start": start, "end": end})

    def set_server_state(self, server: ServerId, *, enabled: bool) -> None:
        self._call("set_ioreq_server_state", {"server": server, "enabled": enabled})

    def destroy_ioreq_server(self, server: ServerId) -> None:
        self._call("destroy_ioreq_server", {"server": server})

    def map_ioreq_page(self, server: ServerId) -> OwnedMapping:
        reply = self._call("map_ioreq_page", {"server": server})
        return _mapping(self._kernel, reply, [0], OpenMappings(), writable=True)

    def set_irq_level(self, irq: Spi, level: int) -> None:
        self._call("set_irq_level", {"irq": irq, "level": level})

    def open_irqfd(self, irq: Spi) -> int | None:
        descriptor = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        try:
            reply = self._call("open_irqfd", {"irq": irq}, (descriptor,))
        except HypervisorError as error:
            os.close(descriptor)
            if error.errno == errno.EOPNOTSUPP:
                return None
            raise
        self._irqfds.append(reply.values["held"])
        return descriptor

    def close(self) -> None:
        while self._irqfds:
            self._kernel.release(self._irqfds.pop())


class EmulatedForeignMemory:
    """`ForeignMemory` of one guest."""

    def __init__(self, kernel: _Kernel, domid: DomId) -> None:
        self._kernel = kernel
        self._domid = domid

    def map_frames(self, domid: DomId, frames: Sequence[Gfn], *, writable: bool) -> tuple[OwnedMapping, list[int]]:
        if domid != self._domid or not frames:
            raise UsageError(f"{len(frames)} frames of domain {domid} through privcmd of domain {self._domid}")
        raw = struct.pack(f"<{len(frames)}Q", *frames)
        reply = self._kernel.call("map_frames", {"domid": domid}, raw)
        answers = array.array("q", reply.raw)
        mapping = _mapping(self._kernel, reply, answers, OpenMappings(), writable=writable)
        return mapping, [min(answer, 0) for answer in answers]

    def close(self) -> None:
        """Nothing to do: mappings outlive the descriptor they were made through."""


class EmulatedGrants:
    """`Grants` of any guest that grants to this backend's domain."""

    def __init__(self, kernel: _Kernel) -> None:
        self._kernel = kernel
        self._mappings = OpenMappings()

    def map(self, domid: DomId, references: Sequence[GrantRef], *, writable: bool) -> OwnedMapping:
        if not references:
            raise UsageError("a mapping of no grant references")
        raw = struct.pack(f"<{len(references)}I", *references)
        reply = self._kernel.call("map_grants", {"domid": domid, "writable": writable}, raw)
        return _mapping(self._kernel, reply, array.array("q", reply.raw), self._mappings, writable=writable)

    def copy(self, segments_address: int, count: int) -> None:
        segments = [_CopySegment(segments_address + i * _SEGMENT.size) for i in range(count)]
        if any(segment.is_malformed for segment in segments):
            raise hypervisor_error("grant_copy", errno.EINVAL)
        asked = [segment for segment in segments if segment.is_for_xen]
        raw = b"".join(segment.request() for segment in asked)
        answers = self._kernel.call("grant_copy", {}, raw).raw if asked else b""
        with self._kernel.windows_lock:
            for segment, (status, window, offset) in zip(asked, COPY_ANSWER.iter_unpack(answers), strict=True):
                segment.status = status
                if status == GrantStatus.OKAY:
                    segment.move(self._kernel.window(window) + offset)
        for segment in segments:
            segment.write_status()

    def close(self) -> None:
        self._mappings.close()


class EmulatedGrantAllocator:
    """`GrantAllocator` of the domain that this hypervisor belongs to."""

    def __init__(self, kernel: _Kernel) -> None:
        self._kernel = kernel
        self._mappings = OpenMappings()

    def allocate(self, domid: DomId, count: int, *, writable: bool) -> GrantedPages:
        reply = self._kernel.call("allocate_grants", {"domid": domid, "count": count, "writable": writable})
        references = [GrantRef(reply.values["first"] + n) for n in range(count)]
        mapping = _mapping(self._kernel, reply, array.array("q", reply.raw), self._mappings, writable=True)
        return GrantedPages(mapping, references)

    def close(self) -> None:
        self._mappings.close()


_SEGMENT = struct.Struct("<QQHHhxx")
_SIDE = struct.Struct("<IHH")
_STATUS_OFFSET = 20
_SOURCE_IS_GRANT = 1
_DESTINATION_IS_GRANT = 2


class _CopySegment:
    """One `struct gntdev_grant_copy_segment`, read once."""

    def __init__(self, address: int) -> None:
        self._address = address
        source, destination, self._length, flags, _ = _SEGMENT.unpack(ctypes.string_at(address, _SEGMENT.size))
        self._sides = (source, destination)
        self._is_grant = (bool(flags & _SOURCE_IS_GRANT), bool(flags & _DESTINATION_IS_GRANT))
        self.status = int(GrantStatus.GENERAL_ERROR if all(self._is_grant) and self._length else GrantStatus.OKAY)

    @property
    def is_malformed(self) -> bool:
        """What the kernel refuses before it asks Xen."""
        ends = [self._grant(side)[1] + self._length for side in (0, 1) if self._is_grant[side]]
        return not ends or max(ends) > PAGE_SIZE

    @property
    def is_for_xen(self) -> bool:
        return self._length > 0 and not all(self._is_grant)

    def _grant(self, side: int) -> tuple[int, int, int]:
        reference, offset, domid = _SIDE.unpack(self._sides[side].to_bytes(8, "little"))
        return reference, offset, domid

    def request(self) -> bytes:
        reference, _, domid = self._grant(self._is_grant.index(True))
        return COPY_REQUEST.pack(reference, domid, self._is_grant[1])

    def move(self, page: int) -> None:
        """Copy the bytes, the granted page being mapped at `page`."""
        source, destination = self._sides
        if self._is_grant[0]:
            source = page + self._grant(0)[1]
        else:
            destination = page + self._grant(1)[1]
        ctypes.memmove(destination, source, self._length)

    def write_status(self) -> None:
        ctypes.c_int16.from_address(self._address + _STATUS_OFFSET).value = self.status


def _mapping(
    kernel: _Kernel, reply: Message, offsets: Sequence[int], mappings: OpenMappings, *, writable: bool
) -> OwnedMapping:
    """Map what the host allowed; given up in the order of the real driver: munmap, then Xen."""
    address, held = map_pages(reply, offsets, writable=writable), reply.values["held"]
    length = len(offsets) * PAGE_SIZE

    def release() -> None:
        libc.munmap(address, length)
        if held:
            kernel.release(held)

    return mappings.add(address, length, release)
