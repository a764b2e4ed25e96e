"""A request on its way through its handler: its arguments, and what its sender may do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from xenvirtio.errors import PeerProtocolError
from xenvirtio.ids import DomId
from xenvirtio.xenstore.connection import Connection
from xenvirtio.xenstore.path import is_special, resolve
from xenvirtio.xenstore.permissions import Access, Permissions, access_of
from xenvirtio.xenstore.quota import Quota
from xenvirtio.xenstore.transaction import Transaction
from xenvirtio.xenstore.tree import Node, View, missing_directories
from xenvirtio.xenstore.wire import RELATIVE_PATH_MAX, MessageType, RefusedError, split_strings

if TYPE_CHECKING:
    from xenvirtio.xenstore.server import XenStoreServer


@dataclass(slots=True)
class Request:
    """One request on its way through a handler. Not changed; not frozen for the reason that `Message` is not."""

    server: XenStoreServer
    connection: Connection
    operation: MessageType
    payload: bytes
    view: View
    transaction: Transaction | None
    transaction_id: int

    @property
    def quota(self) -> Quota:
        """What the caller may use; everything when it is privileged."""
        return self.server.quota_of(self.connection)

    @property
    def creator(self) -> DomId | None:
        """Who becomes the owner of new nodes; None: the parent's owner does."""
        return None if self.connection.privileged else self.connection.domid

    def strings(self, count: int, most: int | None = None) -> list[bytes]:
        """Return the payload as `count` (up to `most`) NUL-terminated strings.

        Raises:
            RefusedError: EINVAL.
        """
        try:
            strings = split_strings(self.payload)
        except PeerProtocolError as error:
            raise self.refuse("EINVAL", str(error)) from None
        if not count <= len(strings) <= (count if most is None else most):
            raise self.refuse("EINVAL", f"{len(strings)} arguments")
        return strings

    def single_path(self, *, special: bool = False) -> str:
        """Return the absolute path that is the only argument."""
        payload = self.payload
        if not payload or payload.find(b"\0") != len(payload) - 1:
            raise self.refuse("EINVAL", "not one path that ends in NUL")
        return self.path(payload[:-1], special=special)

    def path(self, text: bytes, *, special: bool = False) -> str:
        """Return the absolute path of what the caller wrote."""
        bound = RELATIVE_PATH_MAX if self.connection.privileged else self.quota.path_max
        return resolve(text, self.connection.home, special=special, length_max=bound)

    def permits(self, permissions: Permissions, needed: Access) -> bool:
        """May the caller do this with a node that has these permissions?"""
        if self.connection.privileged:
            return True
        return access_of(permissions, self.connection.speaks_for) & needed == needed

    def require(self, node: Node, path: str, needed: Access) -> None:
        """Raises RefusedError: EACCES."""
        if not self.permits(node.permissions, needed):
            raise self.refuse("EACCES", path)

    def refuse(self, name: str, reason: str) -> RefusedError:
        return RefusedError(name, self.operation.name, reason)

    def find(self, path: str, needed: Access) -> Node:
        """Return a node the caller may access in this way.

        Raises:
            RefusedError: EACCES; ENOENT. That a node is absent is told only to those who have the access at the nearest
                directory there is.
        """
        node = self.view.find(path)
        if node is not None:
            self.require(node, path, needed)
            return node
        if is_special(path):
            raise self.refuse("ENOENT", path)
        nearest = self.view.find(missing_directories(self.view, path)[0])
        if nearest is not None and not self.permits(nearest.permissions, needed):
            raise self.refuse("EACCES", path)
        raise self.refuse("ENOENT", path)


class Handler(Protocol):
    def __call__(self, request: Request, /) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Operation:
    """How an operation is served."""

    kind: MessageType
    handler: Handler
    privileged: bool = False
    ignores_transaction: bool = False
