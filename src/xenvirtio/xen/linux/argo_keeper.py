"""The keeper of a process's Argo rings: a program of its own, without imports of the package so that it starts fast.

It holds the memfd of each ring mapped. When the orders end without the rings having been forgotten, their owner has
died: it unregisters them from Xen, and only then lets their memory go.

    python -I -S argo_keeper.py ORDERS PRIVCMD     (descriptors)
"""

import ctypes
import mmap
import os
import signal
import socket
import struct
import sys

ORDER = struct.Struct("<BxHI")
HOLD = 1
UNREGISTER = struct.Struct("<IHH")
HYPERCALL, ARGO, UNREGISTER_RING = 0x00305000, 39, 2

Ring = tuple[int, int]
"""Port and partner."""


def keep(orders: socket.socket) -> dict[Ring, mmap.mmap]:
    """Follow orders until they end; return the rings that are left."""
    rings: dict[Ring, mmap.mmap] = {}
    while True:
        data, files, _, _ = socket.recv_fds(orders, ORDER.size, 1)
        if len(data) < ORDER.size:
            return rings
        what, partner, port = ORDER.unpack(data)
        if what == HOLD:
            rings[port, partner] = mmap.mmap(files[0], 0)
            os.close(files[0])
        else:
            rings.pop((port, partner), None)


def unregister(privcmd: int, ring: Ring) -> None:
    """Take a ring from Xen; that it is not there any more is fine."""
    port, partner = ring
    argument = mmap.mmap(-1, mmap.PAGESIZE)  # shared, so that it is there and stays where it is
    argument[: UNREGISTER.size] = UNREGISTER.pack(port, partner, 0)
    address = ctypes.addressof(ctypes.c_char.from_buffer(argument))
    call = (ctypes.c_uint64 * 6)(ARGO, UNREGISTER_RING, address, 0, 0, 0)
    ctypes.CDLL(None).ioctl(privcmd, ctypes.c_ulong(HYPERCALL), ctypes.byref(call))


def main(orders: int, privcmd: int) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # it ends with its owner, and not before
    for ring in keep(socket.socket(fileno=orders)):
        unregister(privcmd, ring)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
