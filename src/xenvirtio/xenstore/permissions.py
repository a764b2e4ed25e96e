"""Who may do what with a node.

The first entry names the owner, who may do everything, and gives the default for every domain that no later entry
names. Of the later entries the first that names the caller, or the domain it is the target's agent of, decides.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable
from dataclasses import dataclass
from enum import IntEnum

from xenvirtio.ids import DomId
from xenvirtio.xenstore.wire import RefusedError

DOMID_ANY = DomId(0x7FF5)
"""An entry for every domain; clients see it as feature `Feature.DOMID_ANY`."""


class Access(IntEnum):
    """Bits, but not an IntFlag: each node access tests one, and an IntFlag makes an object for each `&`."""

    NONE = 0
    READ = 1
    WRITE = 2
    BOTH = 3
    OWNER = 7


_LETTERS = {"n": Access.NONE, "r": Access.READ, "w": Access.WRITE, "b": Access.BOTH}
_LETTER_OF = {access: letter for letter, access in _LETTERS.items()}
_ENTRY = re.compile(rb"[nrwb][0-9]{1,5}")


@dataclass(frozen=True, slots=True)
class Permission:
    """One entry. `ignored`: it named a domain that did not exist, so a later one of that number gains nothing."""

    access: Access
    domid: DomId
    ignored: bool = False

    def if_exists(self, exists: bool) -> Permission:
        """Return the entry, ignored when its domain does not exist."""
        return Permission(self.access, self.domid, not exists)

    def __str__(self) -> str:
        return f"{_LETTER_OF[self.access]}{self.domid}"


Permissions = tuple[Permission, ...]
"""At least one entry; the first names the owner."""


def parse_permission(text: bytes) -> Permission:
    """Parse one entry such as `r5`.

    Raises:
        RefusedError: EINVAL.
    """
    if not _ENTRY.fullmatch(text) or int(text[1:]) > 0xFFFF:
        raise RefusedError("EINVAL", "permission", text.decode("ascii", "backslashreplace"))
    return Permission(_LETTERS[chr(text[0])], DomId(int(text[1:])))


def parse_permissions(texts: Iterable[bytes | str]) -> Permissions:
    """Parse a list of entries, as bytes from the wire or as text from a caller.

    Raises:
        RefusedError: EINVAL, also when there is none.
    """
    entries = tuple(parse_permission(text.encode() if isinstance(text, str) else text) for text in texts)
    if not entries:
        raise RefusedError("EINVAL", "permission list without an entry")
    return entries


def access_of(permissions: Permissions, domids: Container[int]) -> Access:
    """Return what an unprivileged caller may do that speaks for these domids (its own and its target's)."""
    owner = permissions[0]
    if owner.domid in domids:
        return Access.OWNER
    for entry in permissions[1:]:
        if not entry.ignored and (entry.domid in domids or entry.domid == DOMID_ANY):
            return entry.access
    return owner.access


def inherit(permissions: Permissions, creator: DomId | None) -> Permissions:
    """Return what a new child starts with: its parent's list, with an unprivileged creator as the owner."""
    if creator is None or permissions[0].domid == creator:
        return permissions
    return (Permission(permissions[0].access, creator), *permissions[1:])


def without(permissions: Permissions, domid: int) -> Permissions:
    """Return the list with a dead domain's entries gone. The owner stays: its nodes are removed whole."""
    return permissions[:1] + tuple(entry for entry in permissions[1:] if entry.domid != domid)
