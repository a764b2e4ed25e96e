"""Watches, found by path: firing costs the depth of the path plus the matches, however many watches there are."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

from xenvirtio.xenstore.path import ancestry
from xenvirtio.xenstore.tree import Change

Watcher = TypeVar("Watcher")


@dataclass(frozen=True, slots=True, eq=False)
class Watch(Generic[Watcher]):
    """One registration. `path` is absolute, `registered` what the client wrote; `depth` None is unlimited."""

    watcher: Watcher
    path: str
    registered: bytes
    token: bytes
    depth: int | None = None

    def event_path(self, path: str) -> bytes:
        """Return a changed path in the form the client watches: relative to what it registered relatively."""
        return self.registered + path[len(self.path) :].encode()


class WatchIndex(Generic[Watcher]):
    """All watches of all connections."""

    def __init__(self) -> None:
        self._by_path: dict[str, dict[Watch[Watcher], None]] = {}

    def add(self, watch: Watch[Watcher]) -> None:
        self._by_path.setdefault(watch.path, {})[watch] = None

    def remove(self, watch: Watch[Watcher]) -> None:
        here = self._by_path[watch.path]
        del here[watch]
        if not here:
            del self._by_path[watch.path]

    def matching(self, change: Change) -> Iterable[Watch[Watcher]]:
        """Return the watches whose path, or a directory of it within their depth, has changed."""
        places = ancestry(change.path) if change.subtree_watches else [change.path]
        for distance, place in enumerate(places):
            for watch in self._by_path.get(place, ()):
                if watch.depth is None or distance <= watch.depth:
                    yield watch

    def special_events(self, name: str, domid: int) -> Iterable[tuple[Watch[Watcher], bytes]]:
        """Return who learns that a domain came or went, and the event path of each.

        A plain watch of `@releaseDomain` is not told which domain; one with a depth of 1 or more, or of
        `@releaseDomain/<domid>`, is.
        """
        for watch in self._by_path.get(name, ()):
            yield watch, (f"{name}/{domid}" if watch.depth else name).encode()
        for watch in self._by_path.get(f"{name}/{domid}", ()):
            yield watch, watch.registered
