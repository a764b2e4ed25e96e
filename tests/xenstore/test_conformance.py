"""Every operation with every error it can answer: a row each, over the core and as raw bytes over a socket.

`|` stands for NUL. That no row is missing is read out of the sources (`raisable`). Where C xenstored answers
differently on purpose of ours, docs/store.md says so.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.xenstore.helpers import Hypervisor, Store
from tests.xenstore.raisable import raisable
from xenvirtio.ids import DomId
from xenvirtio.xenstore.operations import OPERATIONS
from xenvirtio.xenstore.serve import XenStoreService
from xenvirtio.xenstore.server import XenStoreServer
from xenvirtio.xenstore.wire import ERROR_NAMES, MessageType

M = MessageType

Step = tuple[str, MessageType, str, int]
"""Who, what, the request, the transaction."""

WORLD: tuple[Step, ...] = (
    ("dom0", M.INTRODUCE, "1|1|1|", 0),
    ("dom0", M.INTRODUCE, "2|1|1|", 0),
    ("dom0", M.WRITE, "/private|secret", 0),
    ("dom0", M.WRITE, "/shared|x", 0),
    ("dom0", M.SET_PERMS, "/shared|n0|r1|", 0),
    *[("dom0", M.MKDIR, f"/local/domain/{domid}|", 0) for domid in (1, 2)],
    *[("dom0", M.SET_PERMS, f"/local/domain/{domid}|n{domid}|", 0) for domid in (1, 2)],
    ("dom0", M.WRITE, "/local/domain/1/a|1", 0),
)
"""Domains 1 and 2 with homes of their own; `/private` for nobody, `/shared` for domain 1 to read."""


@dataclass(frozen=True, slots=True)
class Row:
    """A request and the error (or, without `!`, the reply) it gets after `before` has been done."""

    kind: MessageType
    answer: str
    request: str
    who: str = "dom0"
    transaction: int = 0
    before: tuple[Step, ...] = ()

    @property
    def error(self) -> str | None:
        return self.answer[1:] if self.answer.startswith("!") else None

    def __str__(self) -> str:
        return f"{self.kind.name}-{self.answer.strip('|')[:12]}-{self.who}-{self.request[:24]}".replace("|", "_")


def one(kind: MessageType, answer: str, *requests: str, who: str = "dom0", before: tuple[Step, ...] = ()) -> list[Row]:
    return [Row(kind, answer, request, who, 0, before) for request in requests]


def quota(name: str, value: int) -> Step:
    return "dom0", M.SET_QUOTA, f"1|{name}|{value}|", 0


def start(who: str) -> Step:
    return who, M.TRANSACTION_START, "|", 0


NODE_PATH_ONLY = (M.DIRECTORY, M.READ, M.MKDIR, M.RM, M.GET_PERMS)
BAD_PATHS = (
    "/a+b|",
    "/a.b|",
    "/a:b|",
    "//|",
    "/a//b|",
    "/tool/|",
    "|",
    "",
    "/tool",
    "/tool|x",
    "/tool||",
    "/" + "x" * 2100 + "|",
)

FULL_TRANSACTION = (quota("transaction-nodes", 1), start("dom1"), ("dom1", M.READ, "/shared|", 1))

REQUEST_OF = {
    M.DIRECTORY: "a|", M.DIRECTORY_PART: "a|0|", M.READ: "a|", M.WRITE: "a|v", M.MKDIR: "a|", M.RM: "a|",
    M.GET_PERMS: "a|", M.SET_PERMS: "a|n1|",
}  # fmt: skip
"""One that domain 1 may do with its own node."""

PRIVILEGED_REQUESTS = {
    M.CONTROL: "help|", M.INTRODUCE: "3|1|1|", M.RELEASE: "2|", M.IS_DOMAIN_INTRODUCED: "2|", M.RESUME: "2|",
    M.SET_TARGET: "2|1|", M.SET_FEATURE: "3|0|", M.GET_QUOTA: "nodes|", M.SET_QUOTA: "nodes|5|",
}  # fmt: skip

WITHOUT_TRANSACTION = {M.WATCH, M.UNWATCH}
"""They ignore the transaction id."""

GENERAL = [
    *[Row(kind, "!EACCES", request, "dom1") for kind, request in PRIVILEGED_REQUESTS.items()],
    *[Row(kind, "!ENOENT", "/tool|", transaction=99) for kind in OPERATIONS if kind not in WITHOUT_TRANSACTION],
    *[Row(kind, "!ENOSPC", request, "dom1", 1, FULL_TRANSACTION) for kind, request in REQUEST_OF.items()],
]

NODES = [
    *[row for kind in NODE_PATH_ONLY for row in one(kind, "!EINVAL", *BAD_PATHS)],
    *[row for kind in (M.DIRECTORY, M.READ, M.GET_PERMS) for row in one(kind, "!ENOENT", "/none|")],
    *[row for kind in (*NODE_PATH_ONLY,) for row in one(kind, "!EACCES", "/private|", who="dom1")],
    *one(M.READ, "!EACCES", "/private/none|", who="dom1"),  # that it is absent is not told either
    *one(M.READ, "!ENOENT", "/none|", who="dom0"),
    *one(M.READ, "!EINVAL", "@releaseDomain|"),
    *one(M.READ, "x", "/shared|", who="dom1"),
    *one(M.DIRECTORY, "a|", "/local/domain/1|"),
    *one(M.GET_PERMS, "n0|r1|", "/shared|"),
    *one(M.GET_PERMS, "n0|r32757|", "@releaseDomain|"),
    *one(M.GET_PERMS, "!ENOENT", "@releaseDomain/1|"),
    Row(M.DIRECTORY, "!E2BIG", "/big|",
        before=tuple(("dom0", M.WRITE, f"/big/{'n' * 60}{number}|", 0) for number in range(70))),
    *one(M.DIRECTORY_PART, "!EINVAL", "/|", "/|x|", "/|-1|", "/a+|0|", "/|0|0|"),
    *one(M.DIRECTORY_PART, "!ENOENT", "/none|0|"),
    *one(M.DIRECTORY_PART, "!EACCES", "/private|0|", who="dom1"),
    *one(M.WRITE, "OK|", "/new|v", "/new|"),
    *one(M.WRITE, "!EINVAL", "/a", "", "/a+b|v", "//|v", "@releaseDomain|v"),
    *one(M.WRITE, "!EACCES", "/private|v", "/new|v", "/shared|v", "/shared/below|v", who="dom1"),
    *one(M.WRITE, "!ENOSPC", "b|v", who="dom1", before=(quota("nodes", 2),)),
    *one(M.WRITE, "!ENOSPC", f"a|{'v' * 100}", f"b|{'v' * 100}", who="dom1", before=(quota("node-size", 100),)),
    *one(M.WRITE, "!ENOMEM", "a|v", "b|v", who="dom1", before=(quota("memory", 1),)),
    *one(M.MKDIR, "OK|", "/tool|", "/new|"),
    *one(M.MKDIR, "!ENOSPC", "b|", who="dom1", before=(quota("nodes", 2),)),
    *one(M.MKDIR, "!ENOMEM", "b|", who="dom1", before=(quota("memory", 1),)),
    *one(M.RM, "OK|", "/private|", "/none|"),
    *one(M.RM, "!ENOENT", "/none/none|"),
    *one(M.RM, "!EINVAL", "/|"),
    *one(M.SET_PERMS, "OK|", "/tool|n0|", "/tool|b0|r1|w2|", "@introduceDomain|n0|r1|"),
    *one(M.SET_PERMS, "!EINVAL", "/tool|", "/tool|x0|", "/tool|n|", "/tool|n65536|", "/tool|n0", "/a+|n0|"),
    *one(M.SET_PERMS, "!ENOENT", "/none|n0|", "/tool|n55|"),
    *one(M.SET_PERMS, "!EACCES", "/private|n1|", "/shared|n1|", who="dom1"),
    *one(M.SET_PERMS, "!EPERM", "a|n2|", who="dom1"),
    *one(M.SET_PERMS, "!ENOSPC", "a|n1|r2|r3|r4|r5|r6|", who="dom1"),
    *one(M.SET_PERMS, "!ENOSPC", "a|n1|r2|r3|r4|r5|", who="dom1", before=(quota("node-size", 40),)),
    *one(M.SET_PERMS, "!ENOMEM", "a|n1|", who="dom1", before=(quota("memory", 1),)),
]  # fmt: skip

DEPTH_OFF = (("dom0", M.SET_FEATURE, "3|2|", 0), ("dom0", M.INTRODUCE, "3|1|1|", 0))

WATCHES = [
    *one(M.WATCH, "OK|", "/none|t|", "/tool|t|0|", "@releaseDomain|t|1|", "@releaseDomain/5|t|", "relative|t|"),
    *one(M.WATCH, "!EINVAL", "/a|", "/a|t", "/a|t|x|", "/a|t|-1|", "/a|t|1|1|", "/a+|t|", ""),
    *one(M.WATCH, "!EINVAL", "/a|t|1|", who="dom3", before=DEPTH_OFF),
    *one(M.WATCH, "!EEXIST", "/a|t|", "/a|t|1|", before=(("dom0", M.WATCH, "/a|t|", 0),)),
    *one(M.WATCH, "!ENOSPC", "b|t|", who="dom1", before=(quota("watches", 1), ("dom1", M.WATCH, "a|t|", 0))),
    *one(M.UNWATCH, "OK|", "/a|t|", before=(("dom0", M.WATCH, "/a|t|", 0),)),
    *one(M.UNWATCH, "!ENOENT", "/a|t|"),
    *one(M.UNWATCH, "!EINVAL", "/a|", "/a|t|1|", "/a+|t|", "/a|t"),
    *one(M.RESET_WATCHES, "OK|", "|", ""),
    Row(M.WATCH, "OK|", "/a|t|", transaction=99),
    Row(M.UNWATCH, "!ENOENT", "/a|t|", transaction=99),
    Row(M.RESET_WATCHES, "OK|", "|", transaction=1, before=(start("dom0"),)),
]

READ_THEN_CHANGED = (start("dom0"), ("dom0", M.READ, "/shared|", 1), ("dom0", M.WRITE, "/shared|y", 0))

TRANSACTIONS = [
    *one(M.TRANSACTION_START, "1|", "|"),
    Row(M.TRANSACTION_START, "!EBUSY", "|", transaction=1, before=(start("dom0"),)),
    *one(M.TRANSACTION_START, "!ENOSPC", "|", who="dom1", before=(quota("transactions", 1), start("dom1"))),
    Row(M.TRANSACTION_END, "OK|", "T|", transaction=1, before=(start("dom0"),)),
    Row(M.TRANSACTION_END, "OK|", "F|", transaction=1, before=READ_THEN_CHANGED),
    Row(M.TRANSACTION_END, "!EAGAIN", "T|", transaction=1, before=READ_THEN_CHANGED),
    Row(M.TRANSACTION_END, "!EINVAL", "X|", transaction=1, before=(start("dom0"),)),
    Row(M.TRANSACTION_END, "!EINVAL", "T", transaction=1, before=(start("dom0"),)),
    *one(M.TRANSACTION_END, "!ENOENT", "T|"),
    Row(M.TRANSACTION_END, "!ENOSPC", "T|", "dom1", 1, (*FULL_TRANSACTION, ("dom1", M.WRITE, "a|v", 1))),
    Row(M.TRANSACTION_END, "!ENOMEM", "T|", "dom1", 1,
        (quota("memory", 1), start("dom1"), ("dom1", M.WRITE, "a|v", 1))),
]  # fmt: skip

DOMAINS = [
    *one(M.INTRODUCE, "OK|", "3|1|1|", "1|1|1|", "3|-1|1|"),
    *one(M.INTRODUCE, "!EINVAL", "3|1|0|", "3|1|-1|", "3|1|", "x|1|1|", "65536|1|1|", "32752|1|1|", "3|1|1", "9|1|1|"),
    *one(M.RELEASE, "OK|", "2|"),
    *one(M.RELEASE, "!EINVAL", "0|", "x|", "", "2", "65536|", "2|2|"),
    *one(M.RELEASE, "!ENOENT", "3|"),
    *one(M.GET_DOMAIN_PATH, "/local/domain/7|", "7|", "007|"),
    *one(M.GET_DOMAIN_PATH, "!EINVAL", "65536|", "x|", "|", "", "7", "-1|"),
    *one(M.IS_DOMAIN_INTRODUCED, "T|", "1|", "0|", "32752|"),
    *one(M.IS_DOMAIN_INTRODUCED, "F|", "3|"),
    *one(M.IS_DOMAIN_INTRODUCED, "!EINVAL", "x|", "", "65536|"),
    *one(M.RESUME, "OK|", "1|"),
    *one(M.RESUME, "!EINVAL", "x|", "1|1|"),
    *one(M.RESUME, "!ENOENT", "3|"),
    *one(M.SET_TARGET, "OK|", "1|2|"),
    *one(M.SET_TARGET, "!EINVAL", "1|", "x|2|", "1|x|", "1|2|3|"),
    *one(M.SET_TARGET, "!ENOENT", "1|3|", "3|1|"),
]

SETTINGS = [
    *one(M.GET_FEATURE, "14|", "", "|", "1|"),
    *one(M.GET_FEATURE, "14|", "|", who="dom1"),
    *one(M.GET_FEATURE, "!EACCES", "1|", who="dom1"),
    *one(M.GET_FEATURE, "!EINVAL", "x|", "1|1|", "1", "65536|"),
    *one(M.GET_FEATURE, "!ENOENT", "3|"),
    *one(M.SET_FEATURE, "OK|", "3|0|", "3|14|"),
    *one(M.SET_FEATURE, "!EBUSY", "1|0|"),
    *one(M.SET_FEATURE, "!EINVAL", "3|16|", "3|x|", "3|", "x|0|", "3|0|0|"),
    *one(M.GET_QUOTA, "1000|", "nodes|", "1|nodes|"),
    *one(M.GET_QUOTA, "nodes watches transactions transaction-nodes outstanding node-permissions node-size path-max"
                      " memory|", "", "|"),
    *one(M.GET_QUOTA, "7|", "1|nodes|", before=(quota("nodes", 7),)),
    *one(M.GET_QUOTA, "!EINVAL", "none|", "1|none|", "x|nodes|", "1|nodes|1|", "nodes"),
    *one(M.SET_QUOTA, "OK|", "nodes|5|", "1|nodes|5|", "nodes|0|"),
    *one(M.SET_QUOTA, "!EINVAL", "nodes|", "none|5|", "nodes|x|", "nodes|-1|", "1|nodes|5|5|", "x|nodes|5|", ""),
    *one(M.SET_QUOTA, "!ENOENT", "55|nodes|5|"),
    *one(M.CONTROL, "OK|", "check|", "log|on|", "print|text|", "quota|set|nodes|7|"),
    *one(M.CONTROL, "!EINVAL", "none|", "", "check", "log|maybe|", "print|", "quota|set|none|7|", "quota|set|nodes|x|"),
]  # fmt: skip

ROWS = [*GENERAL, *NODES, *WATCHES, *TRANSACTIONS, *DOMAINS, *SETTINGS]

IMPOSSIBLE = {
    (M.RELEASE, "ENOSPC"): "removes from the tree itself; only a transaction bounds the nodes it touches",
}
"""What `raisable` takes for possible because it follows names."""

NOT_SEEN = {
    (M.DIRECTORY, "E2BIG"): "answered for any reply that is too long, after the handler",
    (M.TRANSACTION_END, "ENOSPC"): "the error that poisoned the transaction",
    (M.TRANSACTION_END, "ENOMEM"): "the error that poisoned the transaction",
}
"""What `raisable` does not see."""


class SocketStore:
    """The same scripts as `Store`, as bytes through sockets."""

    def __init__(self) -> None:
        clock_s = 100.0
        self._service = XenStoreService(XenStoreServer(lambda: clock_s, host=Hypervisor()))
        self._service.start()
        self._sockets: dict[str, socket.socket] = {}

    def close(self) -> None:
        for carrier in self._sockets.values():
            carrier.close()
        self._service.stop()

    def say(self, name: str, kind: int, payload: str, transaction: int = 0) -> str:
        body = payload.replace("|", "\0").encode()
        carrier = self._carrier(name)
        carrier.sendall(struct.pack("<IIII", kind, 77, transaction, len(body)) + body)
        while True:
            answer_kind, number, answer_transaction, length = struct.unpack("<IIII", self._take(carrier, 16))
            answer = self._take(carrier, length)
            if answer_kind != 15:
                break
        assert (number, answer_transaction) == (77, transaction)
        if answer_kind == 16:
            return "!" + answer.rstrip(b"\0").decode()
        assert answer_kind == kind
        return answer.decode("latin-1").replace("\0", "|")

    def _carrier(self, name: str) -> socket.socket:
        if name not in self._sockets:
            mine, their = socket.socketpair()
            mine.settimeout(30)
            self._service.attach(their, DomId(int(name.removeprefix("dom"))))
            self._sockets[name] = mine
        return self._sockets[name]

    def _take(self, carrier: socket.socket, length: int) -> bytes:
        found = b""
        while len(found) < length:
            chunk = carrier.recv(length - len(found))
            assert chunk, "the server hung up"
            found += chunk
        return found


@pytest.fixture(params=["core", "socket"])
def store(request: pytest.FixtureRequest) -> Iterator[Store | SocketStore]:
    if request.param == "core":
        yield Store()
        return
    served = SocketStore()
    yield served
    served.close()


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_row(row: Row, store: Store | SocketStore) -> None:
    for who, kind, request, transaction in WORLD:
        assert store.say(who, kind, request, transaction) == "OK|"
    for who, kind, request, transaction in row.before:
        store.say(who, kind, request, transaction)
    assert store.say(row.who, row.kind, row.request, row.transaction) == row.answer


@pytest.mark.parametrize("kind", [15, 16, 20, 27, 99, 128, 65535, 0xFFFFFFFF])
def test_what_is_no_request_is_not_implemented(kind: int, store: Store | SocketStore) -> None:
    assert store.say("dom1", kind, "/|") == "!ENOSYS"
    assert store.say("dom0", M.READ, "/tool|") == ""  # the connections go on
    assert store.say("dom1", M.GET_DOMAIN_PATH, "7|") == "/local/domain/7|"


@pytest.mark.parametrize("kind", OPERATIONS, ids=lambda kind: kind.name)
def test_every_operation_has_a_row_for_every_error_it_can_raise(kind: MessageType) -> None:
    tested = {row.error for row in ROWS if row.kind is kind and row.error is not None}
    impossible = {name for one_kind, name in IMPOSSIBLE if one_kind is kind}
    not_seen = {name for one_kind, name in NOT_SEEN if one_kind is kind}
    assert tested == raisable(kind) - impossible | not_seen


def test_the_table_reads_the_sources_at_all() -> None:
    assert {"EPERM", "ENOMEM", "EACCES"} <= raisable(M.SET_PERMS)
    assert raisable(M.RESET_WATCHES) == {"ENOENT"}
    assert all(row.error in ERROR_NAMES for row in ROWS if row.error is not None)


@pytest.mark.parametrize("kind", OPERATIONS, ids=lambda kind: kind.name)
def test_every_operation_succeeds_in_some_row(kind: MessageType) -> None:
    succeeding = {row.kind for row in ROWS if row.error is None} | {M.DIRECTORY_PART}  # its replies: test_server
    assert kind in succeeding
