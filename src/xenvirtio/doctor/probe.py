"""`python -m xenvirtio.doctor.probe NAME ...`: try things that may hang, and print each as soon as it is done.

Run by `runner.py`. A line per step; what is missing at the end is where it hung.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import ClassVar

from xenvirtio.channels.unix_socket import UnixSocketChannel
from xenvirtio.doctor.answers import Step
from xenvirtio.errors import HypervisorError, XenStoreError
from xenvirtio.ids import PAGE_SIZE, DomId
from xenvirtio.xen import libc
from xenvirtio.xen.capabilities import DeviceModel
from xenvirtio.xen.linux.device_model import LinuxDeviceModel
from xenvirtio.xen.linux.gntdev import GRANT_COPY, GrantCopy
from xenvirtio.xen.linux.node import Node
from xenvirtio.xen.linux.privcmd import IRQFD, RESTRICT, IrqFd, Privcmd, Restrict
from xenvirtio.xenstore.client import XenStoreClient
from xenvirtio.xenstore.connect import socket_paths

OPENED_NODES = ("evtchn", "gntdev", "gntalloc", "xenbus")
"""Without privcmd, which can block, and xenbus_backend, which only xenstored has a use for."""

XENSTORE_TIMEOUT_S = 4.0

HYPERCALL = 0x00305000
XEN_VERSION = 17
XENVER_VERSION = 0
XENVER_COMMANDLINE = 9
HYPFS_OP = 42
HYPFS_READ = 1
HYPFS_GZIP = 1

IO_URING_SETUP = 425
"""The same number on every architecture."""

BUFFER_PAGES = 16
MAP_LOCKED = 0x2000
MAP_POPULATE = 0x8000


class Hypercall(ctypes.Structure):
    """Source: Linux include/uapi/xen/privcmd.h, struct privcmd_hypercall."""

    _fields_: ClassVar = [("op", ctypes.c_uint64), ("arg", ctypes.c_uint64 * 5)]


class HypfsEntry(ctypes.Structure):
    """Source: xen/include/public/hypfs.h, struct xen_hypfs_direntry; the content follows."""

    _fields_: ClassVar = [
        ("type", ctypes.c_uint8),
        ("encoding", ctypes.c_uint8),
        ("pad", ctypes.c_uint16),
        ("content_len", ctypes.c_uint32),
        ("max_write_len", ctypes.c_uint32),
    ]


def attempt(name: str, action: Callable[[], object]) -> Step:
    """Do it; a refusal is a result."""
    try:
        value = action()
    except HypervisorError as error:
        return Step(name, error.errno)
    except OSError as error:
        return Step(name, error.errno or errno.EIO)
    return Step(name, value="" if value is None else str(value))


def probe_nodes(directory: str) -> Iterator[Step]:
    """Open each node, and ask gntdev to copy nothing, which it does when it can copy."""
    for name in OPENED_NODES:
        try:
            node = Node(f"{directory}/{name}", os.O_NONBLOCK)
        except HypervisorError as error:
            yield Step(name, error.errno)
            continue
        yield Step(name)
        if name == "gntdev":
            yield attempt("grant_copy", partial(node.ioctl, "grant_copy", GRANT_COPY, GrantCopy(0, 0)))
        node.close()


def probe_privcmd(directory: str) -> Iterator[Step]:
    """Open privcmd; is there irqfd, are hypercalls let through, and what does Xen say of itself."""
    try:
        node = Node(f"{directory}/privcmd")
    except HypervisorError as error:
        yield Step("privcmd", error.errno)
        return
    yield Step("privcmd")
    # flags that do not exist: a kernel with irqfd looks at them first and says EINVAL
    wrong = IrqFd(0, 0, 0, 0xFFFFFFFE, 0)
    yield attempt("irqfd", lambda: node.ioctl("irqfd", IRQFD, wrong))
    yield attempt("hypercall", lambda: _hypercall(node, XEN_VERSION, XENVER_VERSION))
    with _hypercall_buffer(directory) as buffer:
        yield attempt("command_line", lambda: _command_line(node, buffer))
        yield attempt("xen_config", lambda: _hypfs_text(node, buffer, "/buildinfo/config"))
    node.close()


def _hypercall(node: Node, op: int, *arguments: int) -> int:
    return node.ioctl("hypercall", HYPERCALL, Hypercall(op, (ctypes.c_uint64 * 5)(*arguments)))


@contextmanager
def _hypercall_buffer(directory: str) -> Iterator[int]:
    """Memory that Xen can write while it runs: the kernel's own kind, or locked where an old kernel has none."""
    length = BUFFER_PAGES * PAGE_SIZE
    prot = libc.protection(writable=True)
    try:
        descriptor = os.open(f"{directory}/hypercall", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        address = libc.mmap(length, prot, libc.MAP_SHARED | libc.MAP_ANONYMOUS | MAP_LOCKED | MAP_POPULATE)
    else:
        address = libc.mmap(length, prot, libc.MAP_SHARED, descriptor)
        os.close(descriptor)
    try:
        ctypes.memset(address, 0, length)
        yield address
    finally:
        libc.munmap(address, length)


def _command_line(node: Node, buffer: int) -> str:
    _hypercall(node, XEN_VERSION, XENVER_COMMANDLINE, buffer)
    return ctypes.string_at(buffer).decode(errors="replace")


def _hypfs_text(node: Node, buffer: int, path: str) -> str:
    name = path.encode() + b"\0"
    ctypes.memmove(buffer, name, len(name))
    result, room = buffer + PAGE_SIZE, (BUFFER_PAGES - 1) * PAGE_SIZE
    _hypercall(node, HYPFS_OP, HYPFS_READ, buffer, len(name), result, room)
    entry = HypfsEntry.from_address(result)
    head = ctypes.sizeof(HypfsEntry)
    content = ctypes.string_at(result + head, min(entry.content_len, room - head))
    if entry.encoding == HYPFS_GZIP:
        content = zlib.decompress(content, 31)
    return content.decode(errors="replace")


def probe_ioreq(directory: str, domid: str) -> Iterator[Step]:
    """Who may do what to the guest: the kernel's half, then Xen's."""
    path, target = f"{directory}/privcmd", DomId(int(domid))
    try:
        node = Node(path)
    except HypervisorError as error:
        yield Step("privcmd", error.errno)
        return
    yield Step("privcmd")
    yield attempt("hypercall", lambda: _hypercall(node, XEN_VERSION, XENVER_VERSION))
    yield attempt("restrict", lambda: node.ioctl("restrict", RESTRICT, Restrict(target)))
    node.close()
    yield from probe_device_model(LinuxDeviceModel(Privcmd(path, target)))


def probe_device_model(model: DeviceModel) -> Iterator[Step]:
    """Create an IOREQ server, map its page, destroy it. It is never enabled, so the guest never meets it."""
    yield attempt("nr_vcpus", model.nr_vcpus)
    with _uninterrupted():
        try:
            server = model.create_ioreq_server()
        except HypervisorError as error:
            yield Step("create", error.errno)
        else:
            yield Step("create", value=str(server))
            try:
                yield attempt("map", lambda: model.map_ioreq_page(server).close())
            finally:
                gone = attempt("destroy", lambda: model.destroy_ioreq_server(server))
            yield gone
    model.close()


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Keep polite signals away: a server that is created must be destroyed."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT, signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def probe_xenstore(guest_name: str | None = None) -> Iterator[Step]:
    """Read what a domain may read of itself, and find a guest by name.

    The client leaves the kernel's device alone until it is connected, so this is safe at any time.
    """
    sockets = [path for path in socket_paths(os.environ) if path.is_socket()]
    if sockets:
        yield attempt("socket", lambda: UnixSocketChannel.connect(sockets[0]).close())
    with XenStoreClient(timeout_s=XENSTORE_TIMEOUT_S) as store:
        if not store.wait_ready(XENSTORE_TIMEOUT_S):
            yield Step("connect", errno.ETIMEDOUT)
            return
        yield Step("connect")
        yield _ask("domid", lambda: store.read("domid"))
        yield _ask("target", lambda: store.read("target"))
        if guest_name is not None:
            yield _ask("guest", lambda: _find_guest(store, guest_name))


def _ask(name: str, action: Callable[[], str]) -> Step:
    try:
        return Step(name, value=action())
    except XenStoreError as error:
        number: int = getattr(errno, error.name, errno.EIO)
        return Step(name, number)


def _find_guest(store: XenStoreClient, name: str) -> str:
    for domid in store.directory("/local/domain"):
        if store.read_optional(f"/local/domain/{domid}/name") == name:
            return domid
    raise XenStoreError("ENOENT", "find guest", name)


def probe_kernel() -> Iterator[Step]:
    """In a process of its own, as a sandbox may kill whoever tries io_uring."""
    yield attempt("eventfd", lambda: os.close(os.eventfd(0, os.EFD_CLOEXEC)))
    yield attempt("io_uring", _try_io_uring)


def _try_io_uring() -> None:
    library = ctypes.CDLL(None, use_errno=True)
    parameters = ctypes.create_string_buffer(120)  # struct io_uring_params
    descriptor = library.syscall(ctypes.c_long(IO_URING_SETUP), ctypes.c_uint(2), parameters)
    if descriptor < 0:
        raise OSError(ctypes.get_errno(), "io_uring_setup")
    os.close(descriptor)


PROBES: dict[str, Callable[..., Iterator[Step]]] = {
    "nodes": probe_nodes,
    "privcmd": probe_privcmd,
    "ioreq": probe_ioreq,
    "xenstore": probe_xenstore,
    "kernel": probe_kernel,
}


def main(arguments: list[str]) -> None:
    for step in PROBES[arguments[0]](*arguments[1:]):
        print(step.encode(), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
