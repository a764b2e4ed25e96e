"""A server of ours in a process of its own, with domains attached to it that are not privileged."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from types import TracebackType

from xenvirtio.bench.store_client import BenchClient
from xenvirtio.bench.store_ring import RingCarrier, RingDescriptors, serve_ring
from xenvirtio.errors import ResourceError
from xenvirtio.ids import DomId
from xenvirtio.xenstore.serve import XenStoreService

READY = b"r"


class ServerProcess:
    """Serves one privileged connection (`control`) and one of each domain from 1 on (`open`)."""

    def __init__(self, domains: int, *, rings: bool = False) -> None:
        """Start it. `rings`: the domains have rings; otherwise sockets.

        Raises:
            ResourceError: it did not start; what it had to say is on standard error.
        """
        pairs = [socket.socketpair() for _ in range(1 if rings else domains + 1)]
        self._mine = [mine for mine, _ in pairs]
        self._rings = [RingDescriptors.create() for _ in range(domains if rings else 0)]
        sockets = [their.fileno() for _, their in pairs]
        ring_descriptors = [descriptor for ring in self._rings for descriptor in ring.all()]
        words = [str(len(sockets)), *map(str, sockets + ring_descriptors)]
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, *words],
            pass_fds=sockets + ring_descriptors,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for _, their in pairs:
            their.close()
        assert self._process.stdout is not None
        if self._process.stdout.read(1) != READY:
            raise ResourceError("the server to be measured did not start")
        self.pid = self._process.pid
        self.control = BenchClient(self._mine[0])

    def __enter__(self) -> ServerProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for mine in self._mine:
            mine.close()
        for ring in self._rings:
            for descriptor in ring.all():
                os.close(descriptor)
        self._process.communicate(timeout=60)  # closes its standard input, on which it ends

    def descriptor(self, number: int) -> int:
        """Return the same as a file descriptor, to be handed to another process. For sockets."""
        return self._mine[number].fileno()

    def open(self, number: int) -> BenchClient:
        """Return the connection of a domain."""
        return BenchClient(RingCarrier(self._rings[number - 1]) if self._rings else self._mine[number])


def serve(socket_count: int, descriptors: list[int]) -> None:
    """Serve these sockets, the first as dom0, and the rings that follow, until standard input ends."""
    with XenStoreService() as service:
        for number, descriptor in enumerate(descriptors[:socket_count]):
            service.attach(socket.socket(fileno=descriptor), DomId(number), privileged=number == 0)
        rest = descriptors[socket_count:]
        for number in range(len(rest) // 3):
            serve_ring(service, RingDescriptors(*rest[3 * number : 3 * number + 3]), DomId(number + 1))
        os.write(1, READY)
        while os.read(0, 1):
            pass


if __name__ == "__main__":
    serve(int(sys.argv[1]), [int(word) for word in sys.argv[2:]])
