"""Transactions: optimistic, decided node by node.

What always holds: a transaction sees each node as it was when the transaction first touched it, plus its own writes;
nobody else sees those before the commit. A commit succeeds when every node the transaction touched still has the
generation it had then (absent counts as one); else it is EAGAIN and nothing has happened. Nodes it did not touch may
change freely. Since writing reads the node first and creating one changes its parent, written nodes and the parents of
created ones are all compared. Nodes touched at different times may contradict each other (a directory lists a child
that is gone): operations bear that, and the commit fails. A failed quota poisons the transaction: its END answers with
that error.

Source: C xenstored, tools/xenstored/transaction.c, as described in its opening comment.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain

from xenvirtio.xenstore.path import leaf, parent
from xenvirtio.xenstore.permissions import Permissions
from xenvirtio.xenstore.tree import Change, Node, Tree
from xenvirtio.xenstore.wire import RefusedError

_ABSENT = -1

_LISTS_NOW = 2
"""Of a change's permission lists the first ones are the node's and its parent's own."""


class _PrivateNode(Node):
    """A node in a transaction. The children of the original are not copied: a directory may be large."""

    __slots__ = ("_gone", "_original")

    def __init__(self, original: Node | None, value: bytes, permissions: Permissions) -> None:
        super().__init__(value, permissions, original.generation if original else 0)
        self._original = original
        self._gone: set[str] = set()
        self.names_bytes = original.names_bytes if original else 0

    def names(self) -> Iterable[str]:
        if self._original is None:
            return self._names
        return chain((name for name in self._original.names() if name not in self._gone), self._names)

    def has_name(self, name: str) -> bool:
        if super().has_name(name):
            return True
        return self._original is not None and self._original.has_name(name) and name not in self._gone

    def add_name(self, name: str) -> None:
        if not self.has_name(name):
            super().add_name(name)

    def remove_name(self, name: str) -> None:
        if super().has_name(name):
            super().remove_name(name)
            return
        if not self.has_name(name):
            return
        self._gone.add(name)
        self.names_bytes -= len(name) + 1
        self._listing = None


class _Touched:
    """A node this transaction has looked at: what it was, what it is now."""

    __slots__ = ("generation", "now", "original", "written")

    def __init__(self, original: Node | None) -> None:
        self.original = original
        self.generation = _ABSENT if original is None else original.generation
        self.now: Node | None = original
        self.written = False


class Transaction:
    """A private view of the tree, and what changed in it."""

    def __init__(self, tree: Tree, nodes_max: int = 0) -> None:
        """`nodes_max` bounds how many nodes it may touch, or a guest could hold any amount of memory; 0 is no bound."""
        self._tree = tree
        self._nodes_max = nodes_max
        self._touched: dict[str, _Touched] = {}
        self._owned: dict[int, int] = {}
        self._changes: dict[str, Change] = {}
        self._poison: str | None = None
        self.private_bytes = 0
        tree.next_generation()

    def poison(self, name: str) -> None:
        """Make the commit fail with this error; the first one stays."""
        self._poison = self._poison or name

    def note(self, changes: Iterable[Change]) -> None:
        """Remember what watches learn at the commit; a later change of the same node replaces an earlier one. Who may
        learn of it is who could read before the transaction or can after it: what permissions were in between nobody
        has seen, and to keep them would let a guest pile them up."""
        for change in changes:
            former = self._changes.pop(change.path, None)
            if former is not None:
                readable_by = tuple(dict.fromkeys(change.readable_by[:_LISTS_NOW] + self._readable_before(change.path)))
                subtree = change.subtree_watches or former.subtree_watches
                change = Change(change.path, subtree, readable_by)
            self._changes[change.path] = change

    def _readable_before(self, path: str) -> tuple[Permissions, ...]:
        places = (path, parent(path))
        touched = [self._touched.get(place) for place in places if place is not None]
        return tuple([entry.original.permissions for entry in touched if entry is not None and entry.original])

    def find(self, path: str) -> Node | None:
        return self._touch(path).now

    def put(self, path: str, value: bytes, permissions: Permissions) -> None:
        touched = self._touch(path)
        node = touched.now
        if node is None:
            self._change_names(path, add=True)
            self._own(permissions, 1)
            touched.now = _PrivateNode(None, value, permissions)
            touched.written = True
            self.private_bytes += _own_bytes(touched.now)
            return
        private = self._private(touched, node)
        self._own(private.permissions, -1)
        self._own(permissions, 1)
        self.private_bytes -= _own_bytes(private)
        private.value = value
        private.permissions = permissions
        self.private_bytes += _own_bytes(private)

    def discard(self, path: str) -> None:
        touched = self._touch(path)
        assert touched.now is not None
        self._own(touched.now.permissions, -1)
        if isinstance(touched.now, _PrivateNode):
            self.private_bytes -= _own_bytes(touched.now)
        touched.now = None
        touched.written = True
        self._change_names(path, add=False)

    def nodes_owned(self, domid: int) -> int:
        return self._tree.nodes_owned(domid) + self.nodes_gained(domid)

    def nodes_gained(self, domid: int) -> int:
        """Return how many more nodes a domain owns in here than outside; negative when they are fewer."""
        return self._owned.get(domid, 0)

    def abort(self) -> None:
        """Let go of everything. The transaction is not used again."""
        for touched in self._touched.values():
            if touched.original is not None:
                touched.original.readers -= 1
        self._touched.clear()

    def commit(self) -> list[Change]:
        """Make the writes visible and return what watches learn. The transaction is over in either case.

        Raises:
            RefusedError: EAGAIN on a conflict; ENOSPC or ENOMEM when a quota had failed.
        """
        touched = dict(self._touched)
        self.abort()
        if self._poison is not None:
            raise RefusedError(self._poison, "TRANSACTION_END")
        if any(self._generation_of(path) != entry.generation for path, entry in touched.items()):
            raise RefusedError("EAGAIN", "TRANSACTION_END")
        written = sorted((path, entry.now) for path, entry in touched.items() if entry.written)  # parents come first
        for path, node in reversed(written):
            if node is None and self._tree.find(path) is not None:
                self._tree.discard(path)
        for path, node in written:
            if node is not None:
                self._tree.put(path, node.value, node.permissions)
        return list(self._changes.values())

    def _generation_of(self, path: str) -> int:
        node = self._tree.find(path)
        return _ABSENT if node is None else node.generation

    def _touch(self, path: str) -> _Touched:
        touched = self._touched.get(path)
        if touched is None:
            if self._nodes_max and len(self._touched) >= self._nodes_max:
                self.poison("ENOSPC")
                raise RefusedError("ENOSPC", "transaction", path)
            original = self._tree.find(path)
            if original is not None:
                original.readers += 1
            touched = self._touched[path] = _Touched(original)
        return touched

    def _private(self, touched: _Touched, node: Node) -> _PrivateNode:
        if not isinstance(node, _PrivateNode):
            node = _PrivateNode(node, node.value, node.permissions)
            self.private_bytes += _own_bytes(node)
            touched.now = node
        touched.written = True
        return node

    def _change_names(self, path: str, *, add: bool) -> None:
        directory = parent(path)
        if directory is None:
            return
        touched = self._touch(directory)
        if touched.now is None:
            return
        private = self._private(touched, touched.now)
        if add:
            private.add_name(leaf(path))
        else:
            private.remove_name(leaf(path))

    def _own(self, permissions: Permissions, sign: int) -> None:
        owner = permissions[0].domid
        self._owned[owner] = self._owned.get(owner, 0) + sign


def _own_bytes(node: Node) -> int:
    return node.size_bytes - node.names_bytes


class StaleTransaction(Transaction):
    """What is left of a transaction after the server was restarted: its END is a conflict, so its owner starts over."""

    def __init__(self, tree: Tree, nodes_max: int = 0) -> None:
        super().__init__(tree, nodes_max)
        self.poison("EAGAIN")
