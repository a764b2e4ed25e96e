"""The journal of a store: a snapshot, then what has changed since; as text, one record a line.

    xenvirtio-store 1
    <crc32> {"format": 1, "nodes": ...}                        the whole state, as `snapshot.dump` makes it
    <crc32> [["put", "/a", "1", ["n0"]], ["discard", "/b"]]    the changes of some requests, whole ones only

What always holds: a record counts as a whole or not at all, so no transaction comes back half done. Only the last one
may be broken: the process was killed while it wrote it, so nobody has been told that it was done. A broken record with
a good one after it is damage of another kind, and acknowledged changes may be in it: that is refused, not skipped.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from xenvirtio.errors import ConfigurationError
from xenvirtio.xenstore.permissions import Permissions
from xenvirtio.xenstore.server import XenStoreServer
from xenvirtio.xenstore.snapshot import FORMAT, encode_domain, encode_permissions, encode_quota
from xenvirtio.xenstore.stream import Encoded, RingStream, encode_progress, join_progress

HEADER = b"xenvirtio-store 1\n"

_GENERATION_RUN_BITS = 32

Change = list[Any]
"""The name of a change, as in `_APPLY`, and its arguments."""


def encode_snapshot(state: Mapping[str, Any]) -> bytes:
    """Return the beginning of a journal."""
    return HEADER + _encode_record(state)


def encode_changes(changes: list[Change]) -> bytes:
    """Return one record of changes that belong together."""
    return _encode_record(changes)


class ChangeRecorder:
    """Collects the changes of a server (`XenStoreServer.record_to`) until `take` makes a record of them."""

    def __init__(self, server: XenStoreServer) -> None:
        self._server = server
        self._changes: list[Change] = []

    def take(self) -> bytes:
        """Return what has happened since the last call as a record; nothing when nothing has."""
        if not self._changes:
            return b""
        changes, self._changes = self._changes, []
        return encode_changes(changes)

    def node_put(self, path: str, value: bytes, permissions: Permissions) -> None:
        self._changes.append(["put", path, value.decode("latin-1"), encode_permissions(permissions)])

    def node_discarded(self, path: str) -> None:
        self._changes.append(["discard", path])

    def domain_changed(self, domid: int) -> None:
        domain = self._server.domains.find(domid)
        self._changes.append(["domain", domid, None if domain is None else encode_domain(domain)])

    def quota_changed(self) -> None:
        self._changes.append(["quota", encode_quota(self._server.domains.quota)])

    def watch_added(self, domid: int, registered: bytes, token: bytes, depth: int | None) -> None:
        self._changes.append(["watch", domid, registered.decode("latin-1"), token.decode("latin-1"), depth])

    def watch_removed(self, domid: int, registered: bytes, token: bytes) -> None:
        self._changes.append(["unwatch", domid, registered.decode("latin-1"), token.decode("latin-1")])

    def transaction_opened(self, domid: int, number: int) -> None:
        self._changes.append(["open", domid, number])

    def transaction_closed(self, domid: int, number: int) -> None:
        self._changes.append(["close", domid, number])

    def ring_moved(self, domid: int, stream: RingStream | None) -> None:
        self._changes.append(["ring", domid, None if stream is None else encode_progress(stream)])


@dataclass(frozen=True, slots=True)
class Replay:
    """What a journal says: the state for `snapshot.restore`, how many records made it, bytes ignored at its end."""

    state: dict[str, Any]
    records: int
    ignored_bytes: int


def replay(where: str, content: bytes) -> Replay:
    """Read a journal. `where` is what messages call it.

    Raises:
        ConfigurationError: this is no journal of ours, or it is damaged elsewhere than at its end.
    """
    if not content.startswith(HEADER):
        raise ConfigurationError(where, "is not the state of a xenvirtio store", "choose another file")
    first, end = _record_at(content, len(HEADER))
    if not isinstance(first, dict):
        raise ConfigurationError(where, "its snapshot is damaged", "move it away to start with an empty store")
    if first.get("format") != FORMAT:
        raise ConfigurationError(where, f"format {first.get('format')!r}", f"{FORMAT} is the one known")
    records = 1
    try:
        state = _State(first)
        while end < len(content):
            changes, following = _record_at(content, end)
            if changes is None:
                break
            for name, *arguments in changes:
                _APPLY[name](state, *arguments)
            end = following
            records += 1
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        raise ConfigurationError(where, f"record {records} is damaged ({error!r})", _CUT.format(end)) from error
    if _has_record_after(content, end):
        raise ConfigurationError(where, f"damaged at byte {end}, with good records after it", _CUT.format(end))
    return Replay(state.as_dump(), records, len(content) - end)


_CUT = "to go on with what precedes: truncate -s {} FILE"


class _State:
    """A dumped state that changes can be applied to."""

    def __init__(self, dumped: dict[str, Any]) -> None:
        self._rest = {**dumped, "generation": int(dumped["generation"])}
        self._nodes: dict[str, Any] = {path: [path, *rest] for path, *rest in dumped["nodes"]}
        self._domains: dict[int, Any] = {entry["domid"]: entry for entry in dumped["domains"]}
        self._clients: dict[str, _Client] = {
            domid: _Client(
                {(path, token): depth for path, token, depth in left["watches"]},
                dict.fromkeys(left["transactions"]),
                left["last_transaction_id"],
                left.get("ring"),
            )
            for domid, left in dumped["connections"].items()
        }

    def put(self, path: str, value: str, permissions: list[str]) -> None:
        self._nodes[path] = [path, value, permissions]

    def discard(self, path: str) -> None:
        del self._nodes[path]

    def domain(self, domid: int, entry: dict[str, Any] | None) -> None:
        if entry is not None:
            self._domains[domid] = entry
        else:
            self._domains.pop(domid, None)
            self._clients.pop(str(domid), None)

    def quota(self, values: dict[str, int]) -> None:
        self._rest["quota"] = values

    def watch(self, domid: int, path: str, token: str, depth: int | None) -> None:
        self._client(domid).watches[path, token] = depth

    def unwatch(self, domid: int, path: str, token: str) -> None:
        self._client(domid).watches.pop((path, token), None)

    def open(self, domid: int, number: int) -> None:
        client = self._client(domid)
        client.transactions[number] = None
        client.last_transaction_id = max(client.last_transaction_id, number)

    def close(self, domid: int, number: int) -> None:
        self._client(domid).transactions.pop(number, None)

    def ring(self, domid: int, progress: Encoded | None) -> None:
        client = self._client(domid)
        client.ring = None if progress is None else join_progress(client.ring, progress)

    def as_dump(self) -> dict[str, Any]:
        """Return it for `snapshot.restore`.

        Generations go on in a range of their own: those that reads and transactions have used up were not recorded,
        and a client may still compare one that it got (DIRECTORY_PART).
        """
        run = (int(self._rest["generation"]) >> _GENERATION_RUN_BITS) + 1
        return {
            **self._rest,
            "generation": run << _GENERATION_RUN_BITS,
            "nodes": list(self._nodes.values()),
            "domains": list(self._domains.values()),
            "connections": {domid: client.as_dump() for domid, client in self._clients.items()},
        }

    def _client(self, domid: int) -> _Client:
        return self._clients.setdefault(str(domid), _Client({}, {}, 0, None))


@dataclass(slots=True)
class _Client:
    watches: dict[tuple[str, str], int | None]
    transactions: dict[int, None]
    last_transaction_id: int
    ring: Encoded | None

    def as_dump(self) -> dict[str, Any]:
        return {
            "watches": [[path, token, depth] for (path, token), depth in self.watches.items()],
            "transactions": list(self.transactions),
            "last_transaction_id": self.last_transaction_id,
            "ring": self.ring,
        }


_APPLY: dict[str, Callable[..., None]] = {
    "put": _State.put,
    "discard": _State.discard,
    "domain": _State.domain,
    "quota": _State.quota,
    "watch": _State.watch,
    "unwatch": _State.unwatch,
    "open": _State.open,
    "close": _State.close,
    "ring": _State.ring,
}


_to_json = json.JSONEncoder(separators=(",", ":")).encode  # json.dumps would make an encoder for each record


def _encode_record(value: object) -> bytes:
    body = _to_json(value).encode()
    return b"%08x %s\n" % (zlib.crc32(body), body)


def _record_at(content: bytes, start: int) -> tuple[Any, int]:
    """Return the record at an offset (None: broken) and where the next one starts."""
    end = content.find(b"\n", start)
    if end < 0:
        return None, len(content)
    checksum, _, body = content[start:end].partition(b" ")
    if checksum != b"%08x" % zlib.crc32(body):
        return None, end + 1
    try:
        return json.loads(body), end + 1
    except (ValueError, RecursionError):
        return None, end + 1


def _has_record_after(content: bytes, start: int) -> bool:
    while start < len(content):
        record, start = _record_at(content, start)
        if record is not None:
            return True
    return False
