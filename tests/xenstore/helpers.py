"""A server with a clock that stands still, and requests as a script writes them."""

from __future__ import annotations

from xenvirtio.errors import HypervisorError
from xenvirtio.ids import DomId
from xenvirtio.xenstore.connection import Connection
from xenvirtio.xenstore.profile import FULL, Profile
from xenvirtio.xenstore.server import XenStoreServer
from xenvirtio.xenstore.wire import Message, MessageType


class Hypervisor:
    """Domains 0..9 exist; the ring of domain 9 cannot be served."""

    def __init__(self) -> None:
        self.rings: list[tuple[str, int]] = []

    def exists(self, domid: DomId) -> bool:
        return domid < 10

    def connect(self, domid: DomId, gfn: int, port: int) -> None:
        if domid == 9:
            raise HypervisorError("map the ring", 22, domid=domid)
        self.rings.append(("connect", domid))

    def disconnect(self, domid: DomId) -> None:
        self.rings.append(("disconnect", domid))


class Store:
    """The server, and by name who talks to it: `dom0` over a socket, `dom1`.. over rings."""

    def __init__(self, profile: Profile = FULL) -> None:
        self.now_s = 100.0
        self.host = Hypervisor()
        self.lines: list[str] = []
        self.server = XenStoreServer(lambda: self.now_s, host=self.host, profile=profile, log=self.lines.append)
        self._connections: dict[str, Connection] = {}

    def who(self, name: str) -> Connection:
        if name not in self._connections:
            self._connections[name] = self.server.connect(DomId(int(name.removeprefix("dom").partition(".")[0])))
        return self._connections[name]

    def ask(self, name: str, kind: int, payload: bytes | str, transaction: int = 0) -> bytes:
        """Return the reply's payload; an error as `!ENOENT`."""
        body = payload if isinstance(payload, bytes) else payload.replace("|", "\0").encode()
        reply = self.server.handle(self.who(name), Message(kind, 77, transaction, body))
        assert (reply.request_id, reply.transaction_id) == (77, transaction)
        if reply.type == MessageType.ERROR:
            return b"!" + reply.payload.rstrip(b"\0")
        assert reply.type == kind
        return reply.payload

    def say(self, name: str, kind: int, payload: bytes | str, transaction: int = 0) -> str:
        """Return the reply as a script writes it, `|` for NUL."""
        return self.ask(name, kind, payload, transaction).decode("latin-1").replace("\0", "|")

    def events(self, name: str) -> list[str]:
        """Take the events that wait, as `path|token`."""
        messages = list(iter(self.who(name).outgoing.pop, None))
        return [m.payload.decode().replace("\0", "|").removesuffix("|") for m in messages if m.type == 15]

    def home(self, domid: int) -> None:
        """Introduce a domain that owns its home, as a toolstack does."""
        assert self.say("dom0", MessageType.INTRODUCE, f"{domid}|1|1|") == "OK|"
        assert self.say("dom0", MessageType.MKDIR, f"/local/domain/{domid}|") == "OK|"
        assert self.say("dom0", MessageType.SET_PERMS, f"/local/domain/{domid}|n{domid}|") == "OK|"
