"""/dev/xen/evtchn: event channels as a readable file descriptor.

Source: Linux include/uapi/xen/evtchn.h (6.12) and drivers/xen/evtchn.c.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Iterable
from typing import ClassVar

from xenvirtio.errors import HypervisorError
from xenvirtio.ids import DomId, EventPort, RemotePort
from xenvirtio.xen.hints import hypervisor_error
from xenvirtio.xen.linux.node import Node
from xenvirtio.xen.linux.static_port_lock import StaticPortLock

BIND_VIRQ = 0x00044500
BIND_INTERDOMAIN = 0x00084501
BIND_UNBOUND_PORT = 0x00044502
UNBIND = 0x00044503
NOTIFY = 0x00044504
RESTRICT_DOMID = 0x00024506
BIND_STATIC = 0x00044507

_READ_BYTES = 4096  # the kernel hands out and takes back no more at once


class BindInterdomain(ctypes.Structure):
    _fields_: ClassVar = [("remote_domain", ctypes.c_uint32), ("remote_port", ctypes.c_uint32)]


class PortArgument(ctypes.Structure):
    """`bind_virq`, `bind_unbound_port`, `unbind` and `notify` all take one unsigned int."""

    _fields_: ClassVar = [("value", ctypes.c_uint32)]


class RestrictDomid(ctypes.Structure):
    _fields_: ClassVar = [("domid", ctypes.c_uint16)]


class LinuxEventChannels:
    """`EventChannels` over one open device node."""

    is_evtchn_node = True
    """The pump may read, write and notify on `fileno()` itself, in compiled code."""

    def __init__(self, path: str, domid: DomId | None = None) -> None:
        self._node = Node(path, os.O_NONBLOCK)
        self._notifications: dict[EventPort, PortArgument] = {}
        self._static_locks: dict[EventPort, StaticPortLock] = {}
        if domid:  # the kernel refuses to restrict to domain 0
            self._restrict(domid)

    def _restrict(self, domid: DomId) -> None:
        try:
            self._node.ioctl("restrict_event_channels", RESTRICT_DOMID, RestrictDomid(domid), domid)
        except HypervisorError as error:
            if error.errno not in (errno.ENOSYS, errno.ENOTTY):
                self._node.close()
                raise

    def fileno(self) -> int:
        return self._node.descriptor

    def bind_interdomain(self, domid: DomId, remote_port: RemotePort) -> EventPort:
        argument = BindInterdomain(domid, remote_port)
        return EventPort(self._node.ioctl("bind_interdomain", BIND_INTERDOMAIN, argument, domid))

    def bind_unbound(self, domid: DomId) -> EventPort:
        return EventPort(self._node.ioctl("bind_unbound_port", BIND_UNBOUND_PORT, PortArgument(domid), domid))

    def bind_virq(self, virq: int) -> EventPort:
        return EventPort(self._node.ioctl("bind_virq", BIND_VIRQ, PortArgument(virq)))

    def bind_static(self, port: EventPort) -> EventPort:
        if port in self._static_locks:
            raise hypervisor_error("bind_static", errno.EISCONN)
        lock = StaticPortLock(port)
        try:
            self._node.ioctl("bind_static", BIND_STATIC, PortArgument(port))  # answers 0, not the port as others do
        except HypervisorError:
            lock.release()
            raise
        self._static_locks[port] = lock
        return port

    def unbind(self, port: EventPort) -> None:
        self._notifications.pop(port, None)
        self._node.ioctl("unbind", UNBIND, PortArgument(port))
        lock = self._static_locks.pop(port, None)
        if lock is not None:
            lock.release()

    def notify(self, port: EventPort) -> None:
        argument = self._notifications.get(port)
        if argument is None:
            argument = self._notifications[port] = PortArgument(port)
        self._node.ioctl("notify", NOTIFY, argument)

    def read(self) -> list[EventPort]:
        try:
            data = os.read(self._node.descriptor, _READ_BYTES)
        except BlockingIOError:
            return []
        except OSError as error:
            raise hypervisor_error("read_event_channels", error.errno or 0) from error
        return [EventPort(port) for (port,) in struct.iter_unpack("=I", data)]

    def unmask(self, ports: Iterable[EventPort]) -> None:
        data = b"".join(struct.pack("=I", port) for port in ports)
        try:
            for start in range(0, len(data), _READ_BYTES):
                os.write(self._node.descriptor, data[start : start + _READ_BYTES])
        except OSError as error:
            raise hypervisor_error("unmask", error.errno or 0) from error

    def close(self) -> None:
        self._node.close()
        while self._static_locks:  # after the kernel has let go of the ports
            self._static_locks.popitem()[1].release()
