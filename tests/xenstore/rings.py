"""A Xen host in memory with our XenStore on it, and guests that use their rings."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

from xenvirtio.channels.guest_ring import GuestRingChannel
from xenvirtio.channels.xenstore_ring import GuestEnd
from xenvirtio.ids import PAGE_SIZE, DomId
from xenvirtio.memory.raw import fence
from xenvirtio.xen.capabilities import HvmParam
from xenvirtio.xen.emulated import Domain, EmulatedHost, EmulatedHypervisor
from xenvirtio.xenstore.client import XenStoreClient
from xenvirtio.xenstore.journal_file import JournalFile
from xenvirtio.xenstore.permissions import parse_permissions
from xenvirtio.xenstore.serve import XenStoreService
from xenvirtio.xenstore.serve_xen import OFFERED_ON_XEN, XenRings
from xenvirtio.xenstore.server import XenStoreServer
from xenvirtio.xenstore.wire import Message, MessageDecoder, MessageType


def page_of(domain: Domain) -> memoryview:
    """The page of a domain's XenStore ring."""
    return memoryview((ctypes.c_char * PAGE_SIZE).from_address(domain.xenstore_address)).cast("B")


def port_of(domain: Domain) -> int:
    return domain.hvm_params[HvmParam.STORE_EVTCHN]


def channel_of(domain: Domain) -> GuestRingChannel:
    port = port_of(domain)
    return GuestRingChannel(
        page_of(domain), domain.event_channels.inbound(port), lambda: domain.event_channels.notify(port), fence
    )


def client_of(domain: Domain) -> XenStoreClient:
    """A client in a guest (or in dom0's kernel)."""
    return XenStoreClient(lambda: channel_of(domain))


class Guest:
    """A guest's kernel that does one step at a time."""

    def __init__(self, domain: Domain) -> None:
        self.domain = domain
        port = port_of(domain)
        self.end = GuestEnd(page_of(domain), lambda: domain.event_channels.notify(port))
        self.decoder = MessageDecoder()
        self.received: list[Message] = []
        self._rest = b""

    def send(self, kind: int, payload: str | bytes, number: int = 1, transaction: int = 0) -> None:
        """Queue a request; `push` puts it into the ring as far as it fits."""
        body = payload if isinstance(payload, bytes) else payload.replace("|", "\0").encode()
        self._rest += Message(kind, number, transaction, body).encode()
        self.push()

    def push(self) -> None:
        while self._rest and (length := self.end.send(self._rest)):
            self._rest = self._rest[length:]

    @property
    def has_sent_all(self) -> bool:
        return not self._rest

    def poll(self) -> list[Message]:
        """Take what has arrived."""
        self.decoder.feed(self.end.receive())
        new = list(iter(self.decoder.next_message, None))
        self.received += new
        return new

    def texts(self) -> list[str]:
        """All that was received: replies as `number:payload`, events as `*path|token`."""
        return [
            ("*" if m.type == MessageType.WATCH_EVENT else f"{m.request_id}:")
            + m.payload.decode("latin-1").replace("\0", "|").removesuffix("|")
            for m in self.received
        ]


class Host:
    """An emulated host and one life of the server; `killed` starts the next one. No thread: `run` does rounds."""

    def __init__(self, state: Path, host: EmulatedHost | None = None, *, compact_bytes: int = 1 << 20) -> None:
        self.state = state
        self.compact_bytes = compact_bytes
        self.host = host if host is not None else EmulatedHost()
        self.now_s = 100.0
        self.warnings: list[str] = []
        self.hypervisor: EmulatedHypervisor = self.host.open_hypervisor()
        self.rings = XenRings(self.hypervisor, warn=self.warnings.append)
        self.server = XenStoreServer(lambda: self.now_s, host=self.rings, features=OFFERED_ON_XEN)
        self.journal: JournalFile | None = None
        self.service = XenStoreService(self.server, save=self.save)
        try:
            self.journal = JournalFile(
                state,
                self.server,
                clock=lambda: self.now_s,
                warn=self.warnings.append,
                compact_bytes=compact_bytes,
            )
            self.rings.start(self.service, self.server)
        except BaseException:
            self.abandon()
            raise

    def save(self) -> None:
        assert self.journal is not None
        self.journal.save()

    def run(self, rounds: int = 20) -> None:
        """What the thread does, so often."""
        for _ in range(rounds):
            self.rings.take_events()
            self.service.take_turns()

    def abandon(self) -> None:
        """What a kill does: the kernel closes everything, nobody writes anything."""
        if self.journal is not None:
            os.close(self.journal._lock)
            os.close(self.journal._descriptor)
        self.hypervisor.close()
        self.rings._channels.close()
        self.service._poller.close()
        os.close(self.service._wake)

    def killed(self) -> Host:
        self.abandon()
        return type(self)(self.state, self.host, compact_bytes=self.compact_bytes)

    def create(self, domid: int | None = None) -> Guest:
        """Create and introduce a domain, as a toolstack does."""
        domain = self.host.create_domain(memory_bytes=1 << 20, domid=None if domid is None else DomId(domid))
        domain.give_xenstore()
        self.introduce(domain)
        return Guest(domain)

    def introduce(self, domain: Domain) -> None:
        def act(server: XenStoreServer) -> None:
            home = f"/local/domain/{domain.domid}"
            for place in ("/local", "/local/domain"):
                if server.tree.find(place) is None:
                    server.tree.put(place, b"", parse_permissions(["n0"]))
            server.tree.put(home, b"", parse_permissions([f"n{domain.domid}"]))
            server.introduce(domain.domid, 1, port_of(domain))

        self.service.call(act)
