"""What `xenvirtio store ls`, `read`, `watch` and the like do. Needs of a server only what each asks for."""

from __future__ import annotations

import argparse
import io
import json
import re
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from xenvirtio.channels.xenbus_device import KernelStore
from xenvirtio.errors import ConfigurationError, ResourceError, XenStoreError
from xenvirtio.xenstore.client import Operations, XenStoreClient
from xenvirtio.xenstore.connect import Connector, connect_default, connect_path
from xenvirtio.xenstore.open import StoreNotReadyError, wait_store
from xenvirtio.xenstore.path import join, parent
from xenvirtio.xenstore.permissions import parse_permission

_ACCESS = {"n": "nothing", "r": "read", "w": "write", "b": "read and write"}
_ESCAPES = {"\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
_ESCAPED = re.compile(rb"\\(?:([nrt\\])|x([0-9a-fA-F]{2})|(.?))", re.DOTALL)
_PLAIN = {b"n": b"\n", b"r": b"\r", b"t": b"\t", b"\\": b"\\"}


# -- values as text


def escape(value: bytes) -> str:
    """Return a value as one printable line; `unescape` undoes it."""
    text = value.decode("utf-8", "surrogateescape")
    return "".join(
        _ESCAPES.get(character)
        or (character if character.isprintable() else _hexadecimal(character.encode("utf-8", "surrogateescape")))
        for character in text
    )


def unescape(text: str) -> bytes:
    """Return the bytes that a text with escapes stands for.

    Raises:
        ConfigurationError: an unknown escape.
    """

    def one(match: re.Match[bytes]) -> bytes:
        letter, digits, _ = match.groups()
        if letter is None and digits is None:
            raise ConfigurationError("VALUE", f"{match[0].decode('utf-8', 'replace')!r} is no escape", "use \\xNN")
        return _PLAIN[letter] if letter is not None else bytes.fromhex(digits.decode())

    return _ESCAPED.sub(one, text.encode("utf-8", "surrogateescape"))


def _hexadecimal(some: bytes) -> str:
    return "".join(f"\\x{byte:02x}" for byte in some)


def _as_json(value: bytes | None) -> dict[str, Any]:
    """`value` is the text, null when the bytes are no text; then `hex` has them."""
    if value is None:
        return {"value": None}
    try:
        return {"value": value.decode()}
    except UnicodeDecodeError:
        return {"value": None, "hex": value.hex()}


# -- the connection, and what went wrong


def run(options: argparse.Namespace) -> int:
    """Run one client command. What goes wrong is one line on standard error."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    for name in ("path", "paths", "pairs"):
        if hasattr(options, name):
            setattr(options, name, _without_last_slash(getattr(options, name), pairs=name == "pairs"))
    with _connect(options) as client:
        try:
            return _ACTIONS[options.action](client, options)
        except XenStoreError as error:
            print(f"xenvirtio: {explain(client, error)}", file=sys.stderr)
            return 1


def _without_last_slash(given: Any, *, pairs: bool) -> Any:
    """Take `/a/`, as a shell's habit has it, for `/a`."""
    if isinstance(given, str):
        return given.rstrip("/") or given[:1]
    return [text if pairs and index % 2 else text.rstrip("/") or text[:1] for index, text in enumerate(given)]


def _connect(options: argparse.Namespace) -> XenStoreClient:
    """Return a client that has its channel.

    Raises:
        ResourceError: there is nobody.
    """
    try:
        wait_store(options.wait, options.socket)
    except StoreNotReadyError as error:
        raise ResourceError(f"{error}; {_remedy(error, options)}") from None
    connect: Connector = connect_default if options.socket is None else lambda: connect_path(options.socket)
    return XenStoreClient(connect)


def _remedy(error: StoreNotReadyError, options: argparse.Namespace) -> str:
    if options.socket is not None:
        return f"start one with: xenvirtio store serve --socket {options.socket}"
    if error.state is KernelStore.LATE:
        return "--wait S waits for it"
    return "--socket PATH names a server"


def explain(client: XenStoreClient, error: XenStoreError) -> str:
    """Say in one line what an error means for this path."""
    path = error.path
    where = "" if path is None else f"{escape(path.encode('utf-8', 'surrogateescape'))}: "
    if error.name == "EACCES" and path is not None:
        return f"{where}not permitted (EACCES): {_who_may(client, path)}"
    if error.name == "EINVAL" and path == "/" and error.operation == "RM":
        return "/: the root cannot be removed (EINVAL)"
    return f"{where}{_REASONS.get(error.name, 'the server refused')} ({error.name}, {error.operation})"


_REASONS = {
    "ENOENT": "no such node",
    "EINVAL": "not valid; a path has letters, digits and - / _ @ only, no // and no / at its end",
    "E2BIG": "too long for a message of the protocol",
    "ENOSYS": "this server lacks the operation",
    "ETIMEDOUT": "the server does not answer",
    "EPERM": "only the owner may do that",
    "EAGAIN": "others keep changing the same nodes; try again",
    "ENOSPC": "a quota of this domain is used up",
}


def _who_may(client: XenStoreClient, path: str) -> str:
    """Name the permissions that decide: the node's, or those of the nearest directory whose can be read."""
    place: str | None = path
    while place is not None:
        try:
            entries = client.get_permissions(place)
        except XenStoreError:
            place = parent(place) if place.startswith("/") else None
            continue
        whose = "" if place == path else f"{place} has: "
        return whose + "; ".join(text for _, text in describe_permissions(entries))
    return "its permissions are hidden from this domain too; its owner or dom0 may change them"


def describe_permissions(entries: list[str]) -> list[tuple[str, str]]:
    """Return each entry with what it means."""
    described = []
    for index, entry in enumerate(entries):
        access = _ACCESS.get(entry[:1], "?")
        who = f"domain {entry[1:]}"
        meaning = f"{who} may: {access}" if index else f"{who} owns it, domains not named may: {access}"
        described.append((entry, meaning))
    return described


# -- nodes as they are shown


@dataclass(slots=True)
class Shown:
    """One node, as far as it could be read; `problem` says why not."""

    name: str
    path: str
    value: bytes | None = None
    permissions: list[str] | None = None
    names: list[str] | None = None
    problem: str | None = None
    children: list[Shown] = field(default_factory=list)

    def line(self) -> str:
        """Name, value, permissions and what is wrong."""
        value = f' = "{escape(self.value)}"' if self.value else ""
        permissions = f"  ({','.join(self.permissions)})" if self.permissions is not None else ""
        return f"{self.name}{value}{permissions}" + (f"  [{self.problem}]" if self.problem else "")

    def as_json(self) -> dict[str, Any]:
        shown: dict[str, Any] = {"path": self.path}
        shown |= {} if self.value is None else _as_json(self.value)
        shown |= {} if self.permissions is None else {"perms": self.permissions}
        shown |= {} if self.problem is None else {"problem": self.problem}
        return shown


class _Reader:
    """Reads nodes while others change them: a node that vanishes is left out, one that refuses is named."""

    def __init__(self, client: XenStoreClient, *, values: bool, permissions: bool) -> None:
        self._client = client
        self._values = values
        self._permissions = permissions
        self.problems: list[str] = []

    def read(self, path: str, name: str) -> Shown | None:
        """Return a node with the names of its children, None when it has vanished."""
        shown = Shown(name, path)
        try:
            if self._values:
                shown.value = self._client.read_bytes(path)
            if self._permissions:
                shown.permissions = self._permissions_of(path)
            shown.names = self._client.directory(path)
        except XenStoreError as error:
            if error.name == "ENOENT":
                return None
            if error.name == "ETIMEDOUT":
                raise
            shown.problem = _why_not(error)
            self.problems.append(explain(self._client, error) if error.name == "EACCES" else f"{path}: {shown.problem}")
        return shown

    def _permissions_of(self, path: str) -> list[str]:
        try:
            return self._client.get_permissions(path)
        except XenStoreError as error:
            if error.name != "ENOSYS":
                raise
            return ["?"]  # a reduced server

    def read_all(self, path: str, depth: int | None) -> Shown:
        """Return a node with all below it.

        Raises:
            XenStoreError: ENOENT, there is no such node.
        """
        top = self.read(path, path)
        if top is None:
            raise XenStoreError("ENOENT", "DIRECTORY", path)
        level = [top]
        while level and depth != 0:
            for above in level:
                found = (self.read(join(above.path, name), name) for name in above.names or ())
                above.children = [shown for shown in found if shown is not None]
            level = [child for above in level for child in above.children]
            depth = None if depth is None else depth - 1
        return top

    def finish(self) -> int:
        """Say what was left out."""
        if not self.problems:
            return 0
        more = f" (and {len(self.problems) - 1} more)" if len(self.problems) > 1 else ""
        print(f"xenvirtio: {self.problems[0]}{more}", file=sys.stderr)
        return 1


def _why_not(error: XenStoreError) -> str:
    if error.operation == "DIRECTORY_PART":
        return "more children than fit into a message, and this server lacks DIRECTORY_PART"
    return "not permitted" if error.name == "EACCES" else f"{error.operation}: {error.name}"


def _walk(top: Shown) -> Iterator[tuple[str, Shown]]:
    """Yield each node, a parent before its children, with what is drawn before it."""
    yield "", top
    waiting = [(child, "", child is top.children[-1]) for child in reversed(top.children)]
    while waiting:
        shown, indent, is_last = waiting.pop()
        yield f"{indent}{'└─ ' if is_last else '├─ '}", shown
        below = indent + ("   " if is_last else "│  ")
        waiting += [(child, below, child is shown.children[-1]) for child in reversed(shown.children)]


# -- the commands


def _ls(client: XenStoreClient, options: argparse.Namespace) -> int:
    names = client.directory(options.path)
    if not options.long:
        print(json.dumps(names) if options.format == "json" else "\n".join(names), end="\n" if names else "")
        return 0
    reader = _Reader(client, values=True, permissions=True)
    children = [shown for name in names if (shown := reader.read(join(options.path, name), name)) is not None]
    if options.format == "json":
        counts = [None if shown.names is None else len(shown.names) for shown in children]
        rows_of = zip(children, counts, strict=True)
        print(json.dumps([{**shown.as_json(), "children": count} for shown, count in rows_of], indent=2))
        return reader.finish()
    rows = [
        (
            ",".join(shown.permissions or ["?"]),
            "?" if shown.names is None else str(len(shown.names)),
            Shown(shown.name, shown.path, shown.value, problem=shown.problem).line(),
        )
        for shown in children
    ]
    widths = [max((len(row[column]) for row in rows), default=0) for column in (0, 1)]
    for permissions, count, line in rows:
        print(f"{permissions:<{widths[0]}}  {count:>{widths[1]}}  {line}")
    return reader.finish()


def _tree(client: XenStoreClient, options: argparse.Namespace) -> int:
    reader = _Reader(client, values=not options.no_values, permissions=options.perms)
    top = reader.read_all(options.path, options.depth)
    if options.format == "json":
        print(json.dumps([shown.as_json() for _, shown in _walk(top)], indent=2))
    else:
        for indent, shown in _walk(top):
            print(indent + shown.line())
    return reader.finish()


def _read(client: XenStoreClient, options: argparse.Namespace) -> int:
    found = []
    for path in options.paths:
        value = client.read_bytes(path)
        found.append({"path": path, **_as_json(value)})
        if options.format == "json":
            continue
        if options.raw:
            sys.stdout.flush()
            sys.stdout.buffer.write(value)
            sys.stdout.buffer.flush()
        else:
            print(escape(value))
    if options.format == "json":
        print(json.dumps(found, indent=2))
    return 0


def _exists(client: XenStoreClient, options: argparse.Namespace) -> int:
    return 0 if client.exists(options.path) else 1


def _write(client: XenStoreClient, options: argparse.Namespace) -> int:
    if len(options.pairs) % 2:
        raise ConfigurationError(options.pairs[-1], "has no value", "give PATH VALUE [PATH VALUE ...]")
    paths, texts = options.pairs[::2], options.pairs[1::2]
    values = [unescape(text) if options.escaped else text.encode("utf-8", "surrogateescape") for text in texts]
    if len(paths) == 1:
        client.write(paths[0], values[0])
    else:
        client.transact(lambda nodes: _write_all(nodes, dict(zip(paths, values, strict=True))))
    return 0


def _write_all(nodes: Operations, values: dict[str, bytes]) -> None:
    for path, value in values.items():
        nodes.write(path, value)


def _each(action: Callable[[XenStoreClient, str], None]) -> Callable[[XenStoreClient, argparse.Namespace], int]:
    def run_each(client: XenStoreClient, options: argparse.Namespace) -> int:
        for path in options.paths:
            action(client, path)
        return 0

    return run_each


def _perms_get(client: XenStoreClient, options: argparse.Namespace) -> int:
    entries = client.get_permissions(options.path)
    if options.format == "json":
        print(json.dumps(entries))
    else:
        width = max(map(len, entries), default=0)
        for entry, meaning in describe_permissions(entries):
            print(f"{entry:<{width}}  {meaning}")
    return 0


def _perms_set(client: XenStoreClient, options: argparse.Namespace) -> int:
    for entry in options.entries:
        try:
            parse_permission(entry.encode())
        except XenStoreError:
            raise ConfigurationError(entry, "is no permission", "one of n r w b and a domid, such as r5") from None
    client.set_permissions(options.path, options.entries)
    if options.recursive:
        below = [join(options.path, name) for name in client.directory(options.path)]
        for path in below:  # grows while it is walked
            client.set_permissions(path, options.entries)
            below += [join(path, name) for name in client.directory(path)]
    return 0


def _watch(client: XenStoreClient, options: argparse.Namespace) -> int:
    deadline_s = None if options.timeout is None else time.monotonic() + options.timeout
    for number, path in enumerate(options.paths):
        client.watch(path, f"xenvirtio-{number}")
    seen = 0
    while options.count is None or seen < options.count:
        remaining_s = 3600.0 if deadline_s is None else deadline_s - time.monotonic()
        event = client.next_event(max(0.0, remaining_s))
        if event is not None:
            seen += 1
            print(json.dumps({"path": event.path}) if options.format == "json" else event.path, flush=True)
        elif deadline_s is not None:
            if options.count is None:
                return 0
            print(f"xenvirtio: {seen} of {options.count} events in {options.timeout:g} s", file=sys.stderr)
            return 1
    return 0


_ACTIONS: dict[str, Callable[[XenStoreClient, argparse.Namespace], int]] = {
    "ls": _ls,
    "tree": _tree,
    "read": _read,
    "exists": _exists,
    "write": _write,
    "rm": _each(XenStoreClient.rm),
    "mkdir": _each(XenStoreClient.mkdir),
    "perms_get": _perms_get,
    "perms_set": _perms_set,
    "watch": _watch,
}
