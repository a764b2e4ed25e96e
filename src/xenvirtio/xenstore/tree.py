"""The nodes, kept flat by path, so that finding one costs the same however many there are.

What always holds: a node's parent exists, and lists it. What changes a node stamps it with the next generation; adding
or removing a child changes the parent. A node that an open transaction has read (`readers`) is never changed in place:
the tree takes a copy and the transaction keeps what it saw.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from xenvirtio.ids import DomId
from xenvirtio.xenstore.path import join, leaf, parent
from xenvirtio.xenstore.permissions import Permissions, inherit, without
from xenvirtio.xenstore.recorder import NoRecorder, Recorder

_NODE_HEADER_BYTES = 24
_PERMISSION_BYTES = 8


class Node:
    """A value, permissions and the names of the children in the order they came."""

    __slots__ = ("_listing", "_names", "generation", "names_bytes", "permissions", "readers", "value")

    def __init__(self, value: bytes, permissions: Permissions, generation: int = 0) -> None:
        self.value = value
        self.permissions = permissions
        self.generation = generation
        self.readers = 0
        self.names_bytes = 0
        self._names: dict[str, None] = {}
        self._listing: bytes | None = None

    @property
    def size_bytes(self) -> int:
        """What the node-size quota counts."""
        return _NODE_HEADER_BYTES + len(self.permissions) * _PERMISSION_BYTES + len(self.value) + self.names_bytes

    def names(self) -> Iterable[str]:
        """The children's leaf names."""
        return self._names

    def has_name(self, name: str) -> bool:
        return name in self._names

    def listing(self) -> bytes:
        """The children's names as DIRECTORY sends them, kept until they change."""
        if self._listing is None:
            self._listing = "".join([name + "\0" for name in self.names()]).encode()
        return self._listing

    def add_name(self, name: str) -> None:
        self._names[name] = None
        self.names_bytes += len(name) + 1
        self._listing = None

    def remove_name(self, name: str) -> None:
        del self._names[name]
        self.names_bytes -= len(name) + 1
        self._listing = None

    def copy(self) -> Node:
        twin = Node(self.value, self.permissions, self.generation)
        twin._names = dict(self._names)
        twin.names_bytes = self.names_bytes
        twin._listing = self._listing
        return twin


class View(Protocol):
    """Nodes as one caller sees them: the tree itself, or a transaction's private view of it."""

    def find(self, path: str) -> Node | None:
        """Return the node, not to be changed by the caller."""

    def put(self, path: str, value: bytes, permissions: Permissions) -> None:
        """Create a node in an existing parent, or replace value and permissions of one."""

    def discard(self, path: str) -> None:
        """Take one node out; the caller sees to its children."""

    def nodes_owned(self, domid: int) -> int:
        """Return how many nodes a domain owns."""


class Tree:
    """The store as it is outside of any transaction."""

    def __init__(self) -> None:
        self.generation = 0
        self.conflicts = 0
        """How many nodes have changed that an open transaction had read, and so made it fail. Who takes notice sets it
        back. A node counts once: what is written afterwards nobody has read."""
        self.recorder: Recorder = NoRecorder()
        self._nodes: dict[str, Node] = {}
        self._naming: dict[int, dict[str, None]] = {}
        self._owned_nodes: dict[int, int] = {}
        self._owned_bytes: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._nodes)

    def items(self) -> Iterator[tuple[str, Node]]:
        """Every path and node, a parent before its children."""
        return iter(self._nodes.items())

    def next_generation(self) -> int:
        self.generation += 1
        return self.generation

    def find(self, path: str) -> Node | None:
        return self._nodes.get(path)

    def put(self, path: str, value: bytes, permissions: Permissions) -> None:
        node = self._nodes.get(path)
        if node is None:
            self._add(path, Node(value, permissions))
        else:
            self._replace(path, self._writable(path, node), value, permissions)
        self.recorder.node_put(path, value, permissions)

    def discard(self, path: str) -> None:
        node = self._nodes.pop(path)
        if node.readers:
            self.conflicts += 1
        self._account(node, -1)
        self._unindex(path, node.permissions)
        directory = parent(path)
        if directory is not None and (above := self._nodes.get(directory)) is not None:
            above = self._writable(directory, above)
            self._account(above, -1)
            above.remove_name(leaf(path))
            self._account(above, 1)
        self.next_generation()
        self.recorder.node_discarded(path)

    def nodes_owned(self, domid: int) -> int:
        return self._owned_nodes.get(domid, 0)

    def bytes_owned(self, domid: int) -> int:
        """What the nodes of a domain take of its memory quota."""
        return self._owned_bytes.get(domid, 0)

    def paths_naming(self, domid: int) -> list[str]:
        """Return the nodes whose permissions name a domain, those it owns among them."""
        return list(self._naming.get(domid, ()))

    def strip(self, path: str, domid: int) -> None:
        """Take a dead domain out of a node's permissions."""
        node = self._nodes[path]
        self.put(path, node.value, without(node.permissions, domid))

    def _add(self, path: str, node: Node) -> None:
        directory = parent(path)
        if directory is not None:
            above = self._writable(directory, self._nodes[directory])
            self._account(above, -1)
            above.add_name(leaf(path))
            self._account(above, 1)
        node.generation = self.next_generation()
        self._nodes[path] = node
        self._index(path, node.permissions)
        self._account(node, 1)

    def _replace(self, path: str, node: Node, value: bytes, permissions: Permissions) -> None:
        if node.permissions is permissions:  # what nearly every write does: the size is all that changes
            self._owned_bytes[permissions[0].domid] += len(value) - len(node.value)
            node.value = value
            return
        self._account(node, -1)
        self._unindex(path, node.permissions)
        self._index(path, permissions)
        node.value = value
        node.permissions = permissions
        self._account(node, 1)

    def _writable(self, path: str, node: Node) -> Node:
        if node.readers:
            self.conflicts += 1
            node = self._nodes[path] = node.copy()
        node.generation = self.next_generation()
        return node

    def _account(self, node: Node, sign: int) -> None:
        owner = node.permissions[0].domid
        self._owned_bytes[owner] = self._owned_bytes.get(owner, 0) + sign * node.size_bytes
        self._owned_nodes[owner] = count = self._owned_nodes.get(owner, 0) + sign
        if not count:
            del self._owned_nodes[owner], self._owned_bytes[owner]

    def _index(self, path: str, permissions: Permissions) -> None:
        for entry in permissions:
            self._naming.setdefault(entry.domid, {})[path] = None

    def _unindex(self, path: str, permissions: Permissions) -> None:
        for entry in permissions:
            paths = self._naming.get(entry.domid)
            if paths is not None and path in paths:
                del paths[path]
                if not paths:
                    del self._naming[entry.domid]


@dataclass(frozen=True, slots=True)
class Change:
    """Something a watch may want to know.

    `subtree_watches`: watches on directories above match as well, not only those on the very path. `readable_by` are
    the permission lists any of which lets a watcher see the event: the node's, its parent's, the node's former.
    """

    path: str
    subtree_watches: bool
    readable_by: tuple[Permissions, ...]


def change_of(view: View, path: str, *former: Permissions) -> Change:
    """Return the change at a node that exists."""
    directory = parent(path)
    nodes = (view.find(path), view.find(directory) if directory is not None else None)
    return Change(path, True, tuple([node.permissions for node in nodes if node is not None]) + former)


def missing_directories(view: View, path: str) -> tuple[str, list[str]]:
    """Return the nearest existing directory of an absent node, and all that is missing, outermost first."""
    missing: list[str] = []
    place: str | None = path
    while place is not None and view.find(place) is None:
        missing.append(place)
        place = parent(place)
    assert place is not None  # `/` is never removed
    return place, missing[::-1]


def create(view: View, path: str, value: bytes, creator: DomId | None) -> list[Change]:
    """Create an absent node and the directories it needs; each inherits its permissions."""
    nearest, missing = missing_directories(view, path)
    above = view.find(nearest)
    assert above is not None
    permissions = inherit(above.permissions, creator)
    for place in missing:
        view.put(place, value if place == path else b"", permissions)
    return [change_of(view, path)]


def remove(view: View, path: str) -> list[Change]:
    """Remove a node and all below it; only the node itself concerns watches on directories above."""
    changes = [change_of(view, path)]
    doomed = [path]
    for place in doomed:  # grows while it is walked
        node = view.find(place)
        for name in node.names() if node is not None else ():
            child = join(place, name)
            if view.find(child) is None:
                continue  # a transaction saw the directory before somebody else removed the child: its commit fails
            changes.append(Change(child, False, change_of(view, child).readable_by))
            doomed.append(child)
    for place in reversed(doomed):
        view.discard(place)
    return changes
