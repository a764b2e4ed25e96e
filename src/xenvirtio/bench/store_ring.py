"""A domain's ring between two processes of this machine: the page in shared memory, an eventfd for each direction."""

from __future__ import annotations

import mmap
import os
import select
from dataclasses import dataclass

from xenvirtio.channels.xenstore_ring import CONNECTION, ConnectionState, GuestEnd, ServerEnd
from xenvirtio.errors import ResourceError
from xenvirtio.ids import PAGE_SIZE, DomId
from xenvirtio.memory.raw import fence
from xenvirtio.xenstore.serve import XenStoreService
from xenvirtio.xenstore.serve_ring import RingLink


@dataclass(frozen=True, slots=True)
class RingDescriptors:
    """The page, the event channel towards the server, and the one towards the guest."""

    page: int
    to_server: int
    to_guest: int

    @classmethod
    def create(cls) -> RingDescriptors:
        page = os.memfd_create("xenstore-ring")
        os.truncate(page, PAGE_SIZE)
        mapped = _map(page)
        mapped.cast("I")[CONNECTION // 4] = ConnectionState.RECONNECT  # until the server has taken it into use
        return cls(page, os.eventfd(0, os.EFD_NONBLOCK), os.eventfd(0, os.EFD_NONBLOCK))

    def all(self) -> list[int]:
        return [self.page, self.to_server, self.to_guest]


def serve_ring(service: XenStoreService, descriptors: RingDescriptors, domid: DomId) -> None:
    """Serve a domain by this ring."""
    end = ServerEnd(_map(descriptors.page), lambda: os.eventfd_write(descriptors.to_guest, 1), fence)

    def told(link: RingLink) -> None:
        os.eventfd_read(descriptors.to_server)
        service.wake(link)

    def add(link: RingLink) -> None:
        service.watch_descriptor(descriptors.to_server, lambda events: told(link))
        service.add(link)

    def release() -> None:
        service.watch_descriptor(descriptors.to_server, lambda events: None)

    service.call(
        lambda server: add(
            RingLink(
                server,
                server.connect(domid, privileged=False),
                end,
                wake=service.wake,
                again=service.again,
                release=release,
            )
        )
    )


class RingCarrier:
    """The guest's end, with those methods of a socket that `BenchClient` uses."""

    def __init__(self, descriptors: RingDescriptors) -> None:
        self._event = descriptors.to_guest
        self._end = GuestEnd(_map(descriptors.page), lambda: os.eventfd_write(descriptors.to_server, 1), fence)
        self._poll = select.poll()
        self._poll.register(self._event, select.POLLIN)
        self._timeout_s = 0.0

    def settimeout(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s

    def sendall(self, data: bytes) -> None:
        while not self._end.is_connected:
            self._wait()
        rest = memoryview(data)
        while rest:
            sent = self._end.send(bytes(rest))
            rest = rest[sent:]
            if not sent:
                self._wait()

    def recv(self, size: int) -> bytes:
        while not (data := self._end.receive()):
            self._wait()
        return data

    def close(self) -> None:
        """The descriptors belong to who made them."""

    def _wait(self) -> None:
        if not self._poll.poll(self._timeout_s * 1000):
            raise TimeoutError("the server does not answer on its ring")
        os.eventfd_read(self._event)


def _map(descriptor: int) -> memoryview:
    try:
        return memoryview(mmap.mmap(descriptor, PAGE_SIZE))
    except OSError as error:
        raise ResourceError(f"a ring's page: {error.strerror}") from error
