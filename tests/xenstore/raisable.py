"""Which error each operation of the server can answer with, read out of the sources.

Calls are followed from a handler by the name of what they are called on: `request.find` is `Request.find`, anything on
a `view` is `Transaction`'s (the tree itself refuses nothing), and so on. So the answer is an upper bound.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import xenvirtio.xenstore
from xenvirtio.xenstore.operations import OPERATIONS
from xenvirtio.xenstore.wire import ERROR_NAMES, MessageType

MODULES = ("operations", "control", "request", "path", "permissions", "transaction", "tree", "domains", "server")
CLASS_OF = {
    "request": "Request",
    "view": "Transaction",
    "transaction": "Transaction",
    "server": "XenStoreServer",
    "domains": "Domains",
    "control": "",
}
"""The last word of what a method is called on, and whose method that is; "" is a function."""

RAISES = {"refuse", "RefusedError", "poison"}

Key = tuple[str, str]
"""A class ("" for none) and a function."""


@cache
def functions() -> dict[Key, list[ast.FunctionDef]]:
    found: dict[Key, list[ast.FunctionDef]] = {}
    folder = Path(xenvirtio.xenstore.__file__).parent
    for name in MODULES:
        for node in ast.parse((folder / f"{name}.py").read_text()).body:
            owner = node.name if isinstance(node, ast.ClassDef) else ""
            for inner in node.body if isinstance(node, ast.ClassDef) else [node]:
                if isinstance(inner, ast.FunctionDef):
                    found.setdefault((owner, inner.name), []).append(inner)
    return found


def calls(key: Key) -> Iterator[ast.Call]:
    for function in functions().get(key, []):
        yield from (node for node in ast.walk(function) if isinstance(node, ast.Call))


def called(key: Key, call: ast.Call) -> Key | None:
    """What a call in the function `key` calls, when that is one of ours."""
    if isinstance(call.func, ast.Name):
        return "", call.func.id
    if isinstance(call.func, ast.Attribute):
        receiver = ast.unparse(call.func.value).rpartition(".")[2]
        owner = key[0] if receiver == "self" else CLASS_OF.get(receiver)
        return (owner, call.func.attr) if owner is not None else None
    return None


def raised_in(key: Key) -> set[str]:
    """The errors that a function raises itself."""
    names = set()
    for call in calls(key):
        name = call.func.id if isinstance(call.func, ast.Name) else getattr(call.func, "attr", "")
        first = call.args[0] if call.args else None
        if name in RAISES and isinstance(first, ast.Constant) and first.value in ERROR_NAMES:
            names.add(str(first.value))
    return names


def reachable(start: Key) -> set[Key]:
    found, rest = {start}, [start]
    while rest:
        key = rest.pop()
        for call in calls(key):
            other = called(key, call)
            if other is not None and other in functions() and other not in found:
                found.add(other)
                rest.append(other)
    return found


def raisable(kind: MessageType) -> set[str]:
    """Every error of an operation, those included that are answered before its handler runs."""
    operation = OPERATIONS[kind]
    module = "handle" if kind is MessageType.CONTROL else operation.handler.__name__  # type: ignore[attr-defined]
    names = {name for key in reachable(("", module)) for name in raised_in(key)}
    if operation.privileged:
        names.add("EACCES")
    if not operation.ignores_transaction:
        names.add("ENOENT")
    return names
