"""What Xen and the kernel keep for one backend process, and what they drop when it dies.

A session ends when its connection does: its ports are closed (the other ends can be bound again), its mappings are
given up, its irqfds removed. IOREQ servers stay as they are, with their slots in whatever state.
"""

from __future__ import annotations

import array
import errno
import os
import socket
import struct
import threading
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from xenvirtio.ids import ArgoPort, DomId, Gfn, GrantRef, ServerId, Spi
from xenvirtio.xen.capabilities import HvmParam
from xenvirtio.xen.emulated.domain import DOM0, Domain
from xenvirtio.xen.emulated.domain_control import CONTROL_OPERATIONS
from xenvirtio.xen.emulated.event_channel import Port
from xenvirtio.xen.emulated.grant_table import GrantStatus
from xenvirtio.xen.emulated.interrupt import IrqFd
from xenvirtio.xen.emulated.refusal import Refusal
from xenvirtio.xen.emulated.wire import Message, receive, send

if TYPE_CHECKING:
    from xenvirtio.xen.emulated.host import EmulatedHost

COPY_REQUEST = struct.Struct("<IHH")
"""A grant to be copied from or to: reference, domid, whether it is written."""
COPY_ANSWER = struct.Struct("<hxxIQ")
"""Its status, the number of the memory window, and where the page lies in it."""

ARGO_ASKED = struct.Struct("<III")
"""A ring asked about: domid, port, room in bytes."""
ARGO_ANSWER = struct.Struct("<II")
"""Its flags and longest message."""


class Session:
    """One backend process of domain `domid`. Calls come one at a time."""

    def __init__(self, host: EmulatedHost, domid: DomId) -> None:
        self._host = host
        self._domid = domid
        self._lock = threading.Lock()
        self._closed = False
        self._next_id = 1
        self._ports: dict[int, Port] = {}
        self._argo_rings: set[tuple[ArgoPort, DomId]] = set()
        self._held: dict[int, Callable[[], None]] = {}
        """How to give up each mapping and irqfd, by the number the client knows it by."""
        self._windows: dict[int, Domain] = {}
        """The guests whose whole memory the client may have mapped for grant copies."""

    def handle(self, request: Message) -> Message:
        """Run one hypercall or ioctl.

        Raises:
            Refusal: what the real one would have answered.
        """
        self._host.counters.add(f"hypercall.{request.operation}")
        with self._lock:
            if self._closed:
                raise Refusal(errno.EBADF)
            return _OPERATIONS[request.operation](self, request)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            for port in self._ports.values():
                self._host.switch.close(self._domid, port)
            self._ports.clear()
            for give_up in self._held.values():
                give_up()
            self._held.clear()
            self._windows.clear()
            for ring in self._argo_rings:
                self._drop_argo_ring(*ring)
            self._argo_rings.clear()

    # -- event channels

    def _bind_interdomain(self, request: Message) -> Message:
        domid, remote_port = DomId(request.values["domid"]), request.values["port"]
        return self._new_port(self._host.switch.bind_interdomain(self._domid, domid, remote_port))

    def _bind_unbound(self, request: Message) -> Message:
        return self._new_port(self._host.switch.allocate_unbound(self._domid, DomId(request.values["domid"])))

    def _bind_virq(self, request: Message) -> Message:
        return self._new_port(self._host.switch.bind_virq(self._domid, request.values["virq"]))

    def _bind_static(self, request: Message) -> Message:
        return self._new_port(self._host.switch.bind_static(self._domid, request.values["port"]))

    def _new_port(self, port: Port) -> Message:
        self._ports[port.number] = port
        return Message(values={"port": port.number}, descriptors=(port.inbound, port.outbound), owner=port)

    def _unbind(self, request: Message) -> Message:
        self._host.switch.close(self._domid, self._ports.pop(request.values["port"]))
        return Message()

    # -- device model

    def _guest(self, request: Message) -> Domain:
        return self._host.device_model_guest(self._domid, DomId(request.values["domid"]))

    def _nr_vcpus(self, request: Message) -> Message:
        return Message(values={"vcpus": len(self._guest(request).vcpus)})

    def _create_ioreq_server(self, request: Message) -> Message:
        guest = self._guest(request)
        if not self._host.has_ioreq_servers:
            raise Refusal(errno.EOPNOTSUPP)
        with guest.lock:
            if self._host.find_granting(guest.domid) is not guest:
                raise Refusal(errno.EINVAL, "no event channels in a dying domain")
            return Message(values={"server": guest.servers.create(self._domid)})

    def _map_io_range(self, request: Message) -> Message:
        guest, values = self._guest(request), request.values
        with guest.lock:
            guest.servers.map_range(ServerId(values["server"]), self._domid, values["start"], values["end"])
        return Message()

    def _unmap_io_range(self, request: Message) -> Message:
        guest, values = self._guest(request), request.values
        with guest.lock:
            guest.servers.unmap_range(ServerId(values["server"]), self._domid, values["start"], values["end"])
        return Message()

    def _set_ioreq_server_state(self, request: Message) -> Message:
        guest, values = self._guest(request), request.values
        with guest.lock:
            server = guest.servers.get(ServerId(values["server"]), self._domid)
            server.set_state(enabled=bool(values["enabled"]))
        return Message()

    def _destroy_ioreq_server(self, request: Message) -> Message:
        guest = self._guest(request)
        with guest.lock:
            guest.servers.destroy(ServerId(request.values["server"]), self._domid)
        return Message()

    def _map_ioreq_page(self, request: Message) -> Message:
        guest = self._guest(request)
        with guest.lock:
            page = guest.servers.get(ServerId(request.values["server"]), self._domid).acquire_page()
        held = self._hold_pages(guest, lambda: None)
        return Message(values={"held": held}, descriptors=(page.descriptor,), owner=page)

    def _set_irq_level(self, request: Message) -> Message:
        self._guest(request).interrupts.set_level(Spi(request.values["irq"]), request.values["level"])
        return Message()

    def _open_irqfd(self, request: Message) -> Message:
        guest, router = self._guest(request), self._host.irqfds
        if router is None:
            raise Refusal(errno.EOPNOTSUPP)
        irqfd = IrqFd(os.dup(request.descriptors[0]), guest.interrupts, Spi(request.values["irq"]))
        router.bind(irqfd)
        return Message(values={"held": self._hold(lambda: router.release(irqfd))})

    # -- what only the control domain may do

    def _control(self, request: Message, *, run: Callable[[EmulatedHost, Message], Message]) -> Message:
        if self._domid != 0:
            raise Refusal(errno.EPERM)
        return run(self._host, request)

    # -- foreign mappings

    def _map_frames(self, request: Message) -> Message:
        """Answer, per frame, where it lies in the memfd or a negative errno."""
        if self._host.domain(DomId(request.values["domid"])) is None and self._domid == 0:
            count = len(request.raw) // 8  # privcmd succeeds and reports Xen's refusal for each frame
            return Message(values={"held": 0}, raw=array.array("q", [-errno.ESRCH] * count).tobytes())
        guest = self._guest(request)
        answers = array.array("q")
        for (frame,) in struct.iter_unpack("<Q", request.raw):
            offset = guest.memory.offset_of_frame(Gfn(frame))
            is_there = offset is not None and self._host.find_granting(guest.domid) is guest
            answers.append(offset if is_there and offset is not None else -errno.EINVAL)
        memory = guest.memory
        held = self._hold_pages(guest, lambda: None) if max(answers, default=-1) >= 0 else 0
        return Message(values={"held": held}, raw=answers.tobytes(), descriptors=(memory.descriptor,), owner=memory)

    def _map_own_xenstore(self, request: Message) -> Message:
        """What /proc/xen/xsd_kva and xsd_port give."""
        domain = self._host.domain(self._domid)
        if domain is None or self._domid != DOM0:
            raise Refusal(errno.ENOENT)
        memory, pfn = domain.memory, Gfn(domain.hvm_params[HvmParam.STORE_PFN])
        values = {"port": domain.hvm_params[HvmParam.STORE_EVTCHN], "offset": memory.offset_of_frame(pfn) or 0}
        held = self._hold_pages(domain, lambda: None)
        return Message(values={"held": held, **values}, descriptors=(memory.descriptor,), owner=memory)

    # -- grants

    def _map_grants(self, request: Message) -> Message:
        domid, writable = DomId(request.values["domid"]), bool(request.values["writable"])
        guest = self._host.find_granting(domid)
        if guest is None or domid == self._domid or not self._host.is_allowed(domid, self._domid):
            raise Refusal(errno.EINVAL)
        references = [GrantRef(reference) for (reference,) in struct.iter_unpack("<I", request.raw)]
        status, offsets = guest.grants.pin(references, self._domid, writable=writable)
        if status != GrantStatus.OKAY:
            raise Refusal(errno.EINVAL, f"grant status {status}")
        memory, grants = guest.memory, guest.grants
        held = self._hold_pages(guest, lambda: grants.unpin(references, writable=writable))
        raw = array.array("q", offsets).tobytes()
        return Message(values={"held": held}, raw=raw, descriptors=(memory.descriptor,), owner=memory)

    def _allocate_grants(self, request: Message) -> Message:
        """Give the client pages of its own domain, granted to another: what gntalloc does."""
        domid, count, readonly = DomId(request.values["domid"]), request.values["count"], not request.values["writable"]
        own = self._host.find_granting(self._domid)
        if own is None or count < 1:
            raise Refusal(errno.EINVAL)
        memory, grants = own.memory, own.grants
        try:
            first = memory.allocate_pages(count)
            frames = [Gfn(first + n) for n in range(count)]
            reference = grants.allocate(domid, frames, readonly=readonly)
        except OSError as error:
            raise Refusal(error.errno or errno.ENOMEM) from error

        def give_up() -> None:
            # a page that is still mapped stays what it is, as in Linux, which waits for the other domain
            for n, frame in enumerate(frames):
                if grants.end_access(GrantRef(reference + n)):
                    memory.free_pages(frame)

        raw = array.array("q", [memory.offset_of_frame(frame) or 0 for frame in frames]).tobytes()
        values = {"held": self._hold(give_up), "first": int(reference)}
        return Message(values=values, raw=raw, descriptors=(memory.descriptor,), owner=memory)

    def _grant_copy(self, request: Message) -> Message:
        """Check each grant; the client moves the bytes, since they lie in its address space."""
        answers = bytearray()
        for reference, domid, writable in COPY_REQUEST.iter_unpack(request.raw):
            answers += COPY_ANSWER.pack(*self._check_copy(GrantRef(reference), DomId(domid), bool(writable)))
        self._host.counters.add("grant_copy_segments", len(answers) // COPY_ANSWER.size)
        return Message(raw=bytes(answers))

    def _check_copy(self, reference: GrantRef, domid: DomId, writable: bool) -> tuple[int, int, int]:
        guest = self._host.find_granting(domid)
        if guest is None:
            return GrantStatus.BAD_DOMAIN, 0, 0
        if domid == self._domid:
            return GrantStatus.GENERAL_ERROR, 0, 0
        if not self._host.is_allowed(domid, self._domid):
            return GrantStatus.PERMISSION_DENIED, 0, 0
        status, offset = guest.grants.check(reference, self._domid, writable=writable)
        return status, self._window_number(guest), offset

    def _window_number(self, guest: Domain) -> int:
        for number, known in self._windows.items():
            if known is guest:
                return number
        number = self._new_id()
        self._windows[number] = guest
        return number

    def _open_window(self, request: Message) -> Message:
        """Pass the memory of a guest; the raw part names windows whose guest is dead, for the client to close."""
        memory = self._windows[request.values["window"]].memory
        dead = [n for n, guest in self._windows.items() if self._host.find_granting(guest.domid) is not guest]
        for number in dead:
            del self._windows[number]
        raw = array.array("q", dead).tobytes()
        return Message(values={"length": memory.length_bytes}, raw=raw, descriptors=(memory.descriptor,), owner=memory)

    # -- Argo

    def _argo_register(self, request: Message) -> Message:
        values = request.values
        port, partner = ArgoPort(values["port"]), DomId(values["domid"])
        descriptor, length, pages = request.descriptors[0], values["length"], values["pages"]
        self._host.argo.register(self._domid, port, partner, length, descriptor, pages)
        self._argo_rings.add((port, partner))
        return Message()

    def _argo_unregister(self, request: Message) -> Message:
        port, partner = ArgoPort(request.values["port"]), DomId(request.values["domid"])
        self._argo_rings.discard((port, partner))
        self._host.argo.unregister(self._domid, port, partner)
        return Message()

    def _drop_argo_ring(self, port: ArgoPort, partner: DomId) -> None:
        try:
            self._host.argo.unregister(self._domid, port, partner)
        except Refusal:
            pass  # it went with its partner

    def _argo_send(self, request: Message) -> Message:
        values = request.values
        to, to_port = DomId(values["domid"]), ArgoPort(values["port"])
        self._host.argo.send(self._domid, ArgoPort(values["source"]), to, to_port, values["kind"], request.raw)
        return Message()

    def _argo_notify(self, request: Message) -> Message:
        asked = [(DomId(d), ArgoPort(port), room) for d, port, room in ARGO_ASKED.iter_unpack(request.raw)]
        answers = self._host.argo.notify(self._domid, asked)
        return Message(raw=b"".join(ARGO_ANSWER.pack(*answer) for answer in answers))

    # -- static shared memory

    def _map_static_region(self, request: Message) -> Message:
        region = self._host.static_region(self._domid, request.raw.decode())
        if region is None:
            raise Refusal(errno.ENOENT)
        return Message(values={"length": region.length_bytes}, descriptors=(region.descriptor,), owner=region)

    # -- what is held

    def _release(self, request: Message) -> Message:
        self._held.pop(request.values["held"])()
        return Message()

    def _hold_pages(self, guest: Domain, give_up: Callable[[], None]) -> int:
        self._host.hold(guest)

        def release() -> None:
            give_up()
            self._host.release(guest)

        return self._hold(release)

    def _hold(self, give_up: Callable[[], None]) -> int:
        number = self._new_id()
        self._held[number] = give_up
        return number

    def _new_id(self) -> int:
        number = self._next_id
        self._next_id += 1
        return number


_OPERATIONS: dict[str, Callable[[Session, Message], Message]] = {
    "bind_interdomain": Session._bind_interdomain,
    "bind_unbound_port": Session._bind_unbound,
    "bind_virq": Session._bind_virq,
    "bind_static": Session._bind_static,
    "unbind": Session._unbind,
    "nr_vcpus": Session._nr_vcpus,
    "create_ioreq_server": Session._create_ioreq_server,
    "map_io_range": Session._map_io_range,
    "unmap_io_range": Session._unmap_io_range,
    "set_ioreq_server_state": Session._set_ioreq_server_state,
    "destroy_ioreq_server": Session._destroy_ioreq_server,
    "map_ioreq_page": Session._map_ioreq_page,
    "set_irq_level": Session._set_irq_level,
    "open_irqfd": Session._open_irqfd,
    "map_frames": Session._map_frames,
    "map_own_xenstore": Session._map_own_xenstore,
    "map_grants": Session._map_grants,
    "allocate_grants": Session._allocate_grants,
    "grant_copy": Session._grant_copy,
    "argo_register_ring": Session._argo_register,
    "argo_unregister_ring": Session._argo_unregister,
    "argo_send": Session._argo_send,
    "argo_notify": Session._argo_notify,
    "open_window": Session._open_window,
    "map_static_region": Session._map_static_region,
    "release": Session._release,
    **{name: partial(Session._control, run=run) for name, run in CONTROL_OPERATIONS.items()},
}


def serve_connection(host: EmulatedHost, connection: socket.socket) -> None:
    """Serve one backend process until it closes the connection or dies."""
    session: Session | None = None
    try:
        session = Session(host, DomId(receive(connection).values["domid"]))
        send(connection, Message())
        while True:
            request = receive(connection)
            try:
                reply = session.handle(request)
            except Refusal as refusal:
                reply = Message(values={"errno": refusal.errno})
            finally:
                for descriptor in request.descriptors:
                    os.close(descriptor)
            send(connection, reply)
    except (EOFError, OSError):
        pass
    finally:
        if session is not None:
            session.close()
