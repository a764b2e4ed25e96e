"""Argo through raw hypercalls: there is no driver for it in mainline Linux.

A ring is a memfd, mapped and locked; its frames come from pagemap. Xen goes on writing into them until the ring is
unregistered, whatever became of the process, so each opened `LinuxArgo` has a keeper: a small process that holds the
memfds and unregisters what is left when this one has died (kill -9 included). Two things nobody can help from user
space: both being killed at once, and a kernel that moves locked pages (`vm.compact_unevictable_allowed` = 1).
"""

from __future__ import annotations

import atexit
import ctypes
import errno
import os
import weakref
from collections.abc import Sequence

from xenvirtio.errors import HypervisorError
from xenvirtio.ids import PAGE_SIZE, ArgoPort, DomId
from xenvirtio.xen import libc
from xenvirtio.xen.argo_abi import (
    FLAG_FAIL_EXIST,
    IOV,
    NOTIFY_ENTRY,
    NOTIFY_HEAD,
    NOTIFY_MAX,
    RING,
    SEND_ADDRESSES,
    UNREGISTER,
    ArgoOp,
    ring_pages,
    ring_state,
)
from xenvirtio.xen.capabilities import ArgoAddress, ArgoRingState
from xenvirtio.xen.hints import PRIVCMD_WOULD_BLOCK, hypervisor_error
from xenvirtio.xen.linux.argo_keeping import Keeper
from xenvirtio.xen.linux.frames import frames_of
from xenvirtio.xen.linux.hypercall import HypercallMemory, Hypercalls, Number
from xenvirtio.xen.linux.privcmd_gate import would_block
from xenvirtio.xen.mapping import OpenMappings, OwnedMapping

DOMID_ANY = 0x7FF4
"""As the source of a message: this domain, whose number Xen fills in."""

_HEADS_BYTES = 64
"""Room for everything but the message itself."""


class LinuxArgo:
    """`Argo` over one open privcmd."""

    def __init__(self, directory: str) -> None:
        if os.path.exists(f"{directory}/privcmd") and would_block():
            raise HypervisorError(f"open {directory}/privcmd", errno.EWOULDBLOCK, hint=PRIVCMD_WOULD_BLOCK)
        self._calls = Hypercalls(directory)
        self._rings = OpenMappings()
        self._keeper: Keeper | None = None
        self._process = os.getpid()
        try:
            self.notify()  # changes nothing, and says now what would be refused later
        except HypervisorError:
            self._calls.close()
            raise
        _open.add(self)

    # -- rings

    def register_ring(self, port: ArgoPort, partner: DomId, length_bytes: int) -> OwnedMapping:
        pages = ring_pages(length_bytes)
        mapped_bytes = max(1, pages) * PAGE_SIZE
        file = os.memfd_create("argo-ring", os.MFD_CLOEXEC)
        try:
            address = _map(file, mapped_bytes, partner)
            try:
                self._register(file, port, partner, length_bytes, frames_of(address, pages))
            except BaseException:
                libc.munmap(address, mapped_bytes)
                raise
        finally:
            os.close(file)

        def release() -> None:
            try:
                self._unregister_own(port, partner)
            finally:
                libc.munmap(address, mapped_bytes)

        return self._rings.add(address, mapped_bytes, release)

    def _register(self, file: int, port: ArgoPort, partner: DomId, length_bytes: int, frames: Sequence[int]) -> None:
        keeper = self._keeper
        if keeper is None:
            keeper = self._keeper = Keeper(self._calls.descriptor)
        keeper.hold(file, port, partner)  # before Xen knows of it: no moment in which a kill leaves it behind
        numbers = b"".join(frame.to_bytes(8, "little") for frame in frames)
        try:
            with self._calls.arguments(_HEADS_BYTES + len(numbers)) as memory:
                ring, gfns = _put(memory, RING.pack(port, partner, 0, length_bytes)), _put(memory, numbers)
                self._call(
                    "argo_register_ring", partner, ArgoOp.REGISTER_RING, ring, gfns, len(frames), FLAG_FAIL_EXIST
                )
        except BaseException:
            keeper.forget(port, partner)
            raise

    def unregister_ring(self, port: ArgoPort, partner: DomId) -> None:
        with self._calls.arguments() as memory:
            ring = _put(memory, UNREGISTER.pack(port, partner, 0))
            self._call("argo_unregister_ring", partner, ArgoOp.UNREGISTER_RING, ring, 0, 0, 0)

    def _unregister_own(self, port: ArgoPort, partner: DomId) -> None:
        try:
            self.unregister_ring(port, partner)
        except HypervisorError as error:
            if error.errno != errno.ENOENT:  # ENOENT: it went with its partner
                raise
        if self._keeper is not None:
            self._keeper.forget(port, partner)

    # -- messages

    def send(self, source: ArgoPort, to: ArgoAddress, kind: int, message: bytes) -> None:
        with self._calls.arguments(_HEADS_BYTES + len(message)) as memory:
            addresses = _put(memory, SEND_ADDRESSES.pack(source, DOMID_ANY, 0, to.port, to.domid, 0))
            iov = memory.reserve(IOV.size)
            ctypes.memmove(iov, IOV.pack(_put(memory, message), len(message), 0), IOV.size)
            self._call("argo_send", to.domid, ArgoOp.SENDV, addresses, iov, 1, kind)

    def notify(self, asked: Sequence[tuple[ArgoAddress, int]] = ()) -> list[ArgoRingState]:
        if len(asked) > NOTIFY_MAX:
            raise hypervisor_error("argo_notify", errno.EACCES)
        entries = [NOTIFY_ENTRY.pack(ring.port, ring.domid, 0, 0, 0, room, 0) for ring, room in asked]
        with self._calls.arguments() as memory:
            where = _put(memory, NOTIFY_HEAD.pack(len(asked), 0) + b"".join(entries)) if asked else 0
            self._call("argo_notify", None, ArgoOp.NOTIFY, where, 0, 0, 0)
            answers = ctypes.string_at(where + NOTIFY_HEAD.size, len(asked) * NOTIFY_ENTRY.size) if asked else b""
        return [ring_state(entry[3], entry[6]) for entry in NOTIFY_ENTRY.iter_unpack(answers)]

    def _call(self, operation: str, domid: DomId | None, *arguments: int) -> None:
        self._calls.call(operation, Number.ARGO, *arguments, domid=domid)

    def close(self) -> None:
        _open.discard(self)
        if os.getpid() != self._process:
            return  # a child of fork: the rings are its parent's
        self._rings.close()
        if self._keeper is not None:
            self._keeper.close()
        self._calls.close()


def _map(file: int, mapped_bytes: int, partner: DomId) -> int:
    flags = libc.MAP_SHARED | libc.MAP_LOCKED | libc.MAP_POPULATE
    try:
        os.ftruncate(file, mapped_bytes)
        return libc.mmap(mapped_bytes, libc.protection(writable=True), flags, file)
    except OSError as error:
        raise hypervisor_error("argo_register_ring", error.errno or 0, partner) from error


def _put(memory: HypercallMemory, data: bytes) -> int:
    address = memory.reserve(len(data))
    ctypes.memmove(address, data, len(data))
    return address


_open: weakref.WeakSet[LinuxArgo] = weakref.WeakSet()


def _close_all() -> None:
    for argo in list(_open):
        argo.close()


atexit.register(_close_all)
