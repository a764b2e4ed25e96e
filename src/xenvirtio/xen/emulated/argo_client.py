"""Argo of the emulated host as a process sees it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Protocol

from xenvirtio.errors import HypervisorError
from xenvirtio.ids import PAGE_SIZE, ArgoPort, DomId
from xenvirtio.xen import libc
from xenvirtio.xen.argo_abi import ring_pages, ring_state
from xenvirtio.xen.capabilities import ArgoAddress, ArgoRingState
from xenvirtio.xen.emulated.session import ARGO_ANSWER, ARGO_ASKED
from xenvirtio.xen.emulated.wire import Message
from xenvirtio.xen.mapping import OpenMappings, OwnedMapping


class Call(Protocol):
    """Asks the host; a refusal comes as HypervisorError."""

    def __call__(
        self, operation: str, values: dict[str, int], raw: bytes = b"", descriptors: Sequence[int] = ()
    ) -> Message: ...


class EmulatedArgo:
    """`Argo` over an emulated host."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._rings = OpenMappings()
        self.notify()  # as the real one: refused at opening rather than at first use

    def register_ring(self, port: ArgoPort, partner: DomId, length_bytes: int) -> OwnedMapping:
        pages = ring_pages(length_bytes)
        mapped_bytes = max(1, pages) * PAGE_SIZE
        file = os.memfd_create("argo-ring", os.MFD_CLOEXEC)
        try:
            os.ftruncate(file, mapped_bytes)
            values = {"port": port, "domid": partner, "length": length_bytes, "pages": pages}
            self._call("argo_register_ring", values, descriptors=(file,))
            address = libc.mmap(mapped_bytes, libc.protection(writable=True), libc.MAP_SHARED, file)
        finally:
            os.close(file)

        def release() -> None:
            try:
                self.unregister_ring(port, partner)
            except HypervisorError:
                pass  # it went with its partner, or the host is gone
            libc.munmap(address, mapped_bytes)

        return self._rings.add(address, mapped_bytes, release)

    def unregister_ring(self, port: ArgoPort, partner: DomId) -> None:
        self._call("argo_unregister_ring", {"port": port, "domid": partner})

    def send(self, source: ArgoPort, to: ArgoAddress, kind: int, message: bytes) -> None:
        self._call("argo_send", {"source": source, "domid": to.domid, "port": to.port, "kind": kind}, message)

    def notify(self, asked: Sequence[tuple[ArgoAddress, int]] = ()) -> list[ArgoRingState]:
        raw = b"".join(ARGO_ASKED.pack(ring.domid, ring.port, room_bytes) for ring, room_bytes in asked)
        answers = self._call("argo_notify", {}, raw).raw
        return [ring_state(flags, message_max_bytes) for flags, message_max_bytes in ARGO_ANSWER.iter_unpack(answers)]

    def close(self) -> None:
        self._rings.close()
