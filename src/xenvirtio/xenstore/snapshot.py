"""The whole state of a server as a value that JSON can hold, and back.

What a restart keeps: nodes, domains, quotas, and of each domain's ring its watches, the numbers of its open
transactions and where its streams stand. Transactions come back as conflicts, so that their owners start over. Socket
clients reconnect by themselves and register again. Bytes are kept as latin-1 text.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from xenvirtio.errors import ConfigurationError
from xenvirtio.ids import DomId
from xenvirtio.xenstore.connection import Connection, LeftBehind
from xenvirtio.xenstore.domains import Domain
from xenvirtio.xenstore.path import is_special
from xenvirtio.xenstore.permissions import Permission, Permissions, parse_permission
from xenvirtio.xenstore.quota import Quota
from xenvirtio.xenstore.server import XenStoreServer
from xenvirtio.xenstore.stream import decode_stream, encode_stream
from xenvirtio.xenstore.wire import Feature, RefusedError

FORMAT = 1


def dump(server: XenStoreServer) -> dict[str, Any]:
    """Return the state of a server."""
    left = {str(domid): _left_behind(kept) for domid, kept in server.left_behind().items()}
    for connection in server.all_connections():
        if connection.kept:
            left[str(connection.domid)] = _left_behind(_left_by(connection))
    return {
        "format": FORMAT,
        "generation": server.tree.generation,
        "nodes": [
            [path, node.value.decode("latin-1"), encode_permissions(node.permissions)]
            for path, node in server.tree.items()
        ],
        "quota": encode_quota(server.domains.quota),
        "domains": [encode_domain(domain) for domain in server.domains.all()],
        "connections": left,
    }


def encode_domain(domain: Domain) -> dict[str, Any]:
    """Return what is kept of a domain."""
    return {
        "domid": domain.domid,
        "gfn": domain.gfn,
        "port": domain.port,
        "introduced": domain.is_introduced,
        "shutdown": domain.is_shutdown_announced,
        "features": int(domain.features),
        "target": domain.target,
        "quota": dict(domain.quota_changes),
    }


def encode_quota(quota: Quota) -> dict[str, int]:
    """Return the bounds by their wire names."""
    return {name: quota.value(name) for name in Quota.names()}


def encode_permissions(permissions: Permissions) -> list[str]:
    """Return the entries; one that is ignored ends in `!`."""
    return [f"{entry}{'!' if entry.ignored else ''}" for entry in permissions]


def restore(server: XenStoreServer, state: Mapping[str, Any]) -> None:
    """Fill a new server with a state that `dump` made. Rings are not connected: their keeper does that.

    Raises:
        ConfigurationError: this is no such state.
    """
    if state.get("format") != FORMAT:
        raise ConfigurationError("XenStore state", f"format {state.get('format')!r}", f"{FORMAT} is the one known")
    try:
        _restore_nodes(server, state)
        _restore_domains(server, state)
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError, RefusedError) as error:
        raise ConfigurationError("XenStore state", f"damaged ({error!r})", "start with an empty store") from error


def _restore_nodes(server: XenStoreServer, state: Mapping[str, Any]) -> None:
    server.tree.generation = max(server.tree.generation, int(state["generation"])) + 1  # before any node gets its own
    for path in reversed([path for path, _ in server.tree.items() if path != "/" and not is_special(path)]):
        server.tree.discard(path)  # what a new server starts with may have been removed
    for path, value, entries in state["nodes"]:
        permissions: Permissions = tuple(_parse_entry(entry) for entry in entries)
        server.tree.put(path, value.encode("latin-1"), permissions)


def _restore_domains(server: XenStoreServer, state: Mapping[str, Any]) -> None:
    server.domains.quota = Quota().with_values(state["quota"])
    for entry in state["domains"]:
        domain = server.domains.know(DomId(entry["domid"]))
        domain.gfn, domain.port = entry["gfn"], entry["port"]
        domain.is_introduced, domain.is_shutdown_announced = entry["introduced"], entry["shutdown"]
        domain.features = Feature(entry["features"])
        domain.quota_changes = dict(entry["quota"])
    for entry in state["domains"]:
        if entry["target"] is not None:
            server.set_target(DomId(entry["domid"]), DomId(entry["target"]))
    for domid, left in state["connections"].items():
        watches = tuple(
            (path.encode("latin-1"), token.encode("latin-1"), depth) for path, token, depth in left["watches"]
        )
        stream = decode_stream(left.get("ring"))
        kept = LeftBehind(watches, tuple(left["transactions"]), left["last_transaction_id"], stream)
        server.keep_for(int(domid), kept)


def _left_by(connection: Connection) -> LeftBehind:
    watches = tuple((watch.registered, watch.token, watch.depth) for watch in connection.watches.values())
    return LeftBehind(watches, tuple(connection.transactions), connection.last_transaction_id, connection.stream)


def _left_behind(left: LeftBehind) -> dict[str, Any]:
    return {
        "watches": [[path.decode("latin-1"), token.decode("latin-1"), depth] for path, token, depth in left.watches],
        "transactions": list(left.transactions),
        "last_transaction_id": left.last_transaction_id,
        "ring": encode_stream(left.stream),
    }


def _parse_entry(text: str) -> Permission:
    entry = parse_permission(text.rstrip("!").encode())
    return entry.if_exists(not text.endswith("!"))
