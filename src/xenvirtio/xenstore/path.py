"""Paths: what is allowed in them, and what a relative one is relative to.

Source: docs/misc/xenstore.txt; the length rule is C xenstored's (the `/local/domain/N/` prefix is not counted).
"""

from __future__ import annotations

import re

from xenvirtio.xenstore.wire import ABSOLUTE_PATH_MAX, RELATIVE_PATH_MAX, RefusedError

INTRODUCE_DOMAIN = "@introduceDomain"
RELEASE_DOMAIN = "@releaseDomain"

_NODE = re.compile(rb"/|(?:/[A-Za-z0-9\-_@]+)+")
_SPECIAL = re.compile(rb"@[A-Za-z0-9\-_@]+(?:/[A-Za-z0-9\-_@]+)*")
_HOME = re.compile(r"/local/domain/[0-9]{1,5}/")


def domain_path(domid: int) -> str:
    """Return the home of a domain, the base of its relative paths."""
    return f"/local/domain/{domid}"


def is_special(path: str) -> bool:
    """Is this the name of an event the server invents, rather than of a node below `/`?"""
    return path.startswith("@")


def is_relative(text: bytes) -> bool:
    """Does the caller's home belong in front of this path?"""
    return not text.startswith((b"/", b"@"))


def resolve(text: bytes, home: str, *, special: bool = False, length_max: int = RELATIVE_PATH_MAX) -> str:
    """Return the absolute path of what a client wrote.

    `length_max` bounds what follows the `/local/domain/N/` prefix (exclusive; 0 is unlimited). `special` allows
    names in `@`, as watches and permissions do.

    Raises:
        RefusedError: EINVAL, the text is no valid path.
    """
    absolute = home.encode() + b"/" + text if is_relative(text) else text
    is_valid = _NODE.fullmatch(absolute) or (special and _SPECIAL.fullmatch(absolute))
    if not is_valid or not text:
        raise RefusedError("EINVAL", "path", text.decode("ascii", "backslashreplace"))
    path = absolute.decode("ascii")
    if length_max and len(path) >= length_max:
        prefix = _HOME.match(path)
        is_long = len(path) - (prefix.end() if prefix else 0) >= length_max
    else:
        is_long = False
    if is_long or len(path) > ABSOLUTE_PATH_MAX:
        raise RefusedError("EINVAL", "path", f"{path[:40]}... ({len(path)} bytes)")
    return path


def parent(path: str) -> str | None:
    """Return the path of the directory a node is in, None for `/` and for special names."""
    if path == "/" or is_special(path):
        return None
    return path[: path.rindex("/")] or "/"


def leaf(path: str) -> str:
    """Return the last component."""
    return path[path.rindex("/") + 1 :]


def join(directory: str, name: str) -> str:
    """Return the path of a child."""
    return f"/{name}" if directory == "/" else f"{directory}/{name}"
