"""Watches, found by path: firing costs the depth of the path plus the matches, however many watches there are.

Where several connections watch one path, each is a step; one that may not see the change costs no more than that.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Generic, TypeVar

from xenvirtio.xenstore.path import is_special
from xenvirtio.xenstore.wire import join_strings

Watcher = TypeVar("Watcher")


@dataclass(frozen=True, slots=True, eq=False)
class Watch(Generic[Watcher]):
    """One registration. `path` is absolute, `registered` what the client wrote; `depth` None is unlimited."""

    watcher: Watcher
    path: str
    registered: bytes
    token: bytes
    depth: int | None = None

    def event(self, path: str) -> bytes:
        """Return the payload of the event for a changed path, in the form the client watches: relative to what it
        registered relatively."""
        return b"%b%b\0%b\0" % (self.registered, path[len(self.path) :].encode(), self.token)


@dataclass(slots=True)
class Group(Generic[Watcher]):
    """One watcher's watches of one path. Whether it may see a change is asked once for all of them: a guest that
    watches `/` with all it has would otherwise cost each write of everybody as many checks."""

    watcher: Watcher
    watches: Iterable[Watch[Watcher]]
    distance: int
    """How far above the changed node their path is."""

    def reached(self) -> Iterable[Watch[Watcher]]:
        """Those whose depth reaches the change."""
        return [watch for watch in self.watches if watch.depth is None or self.distance <= watch.depth]


class WatchIndex(Generic[Watcher]):
    """All watches of all connections."""

    def __init__(self) -> None:
        self._by_path: dict[str, dict[Watcher, dict[Watch[Watcher], None]]] = {}
        self._lengths: Counter[int] = Counter()
        """Of the watched paths. A path of a thousand levels is cut only where somebody may watch: or a guest that
        writes to all of them in one transaction holds everybody up for seconds."""

    def add(self, watch: Watch[Watcher]) -> None:
        if watch.path not in self._by_path:
            self._lengths[len(watch.path)] += 1
        self._by_path.setdefault(watch.path, {}).setdefault(watch.watcher, {})[watch] = None

    def remove(self, watch: Watch[Watcher]) -> None:
        here = self._by_path[watch.path]
        of_watcher = here[watch.watcher]
        del of_watcher[watch]
        if not of_watcher:
            del here[watch.watcher]
            if not here:
                del self._by_path[watch.path]
                self._lengths[len(watch.path)] -= 1
                if not self._lengths[len(watch.path)]:
                    del self._lengths[len(watch.path)]

    def groups_at(self, path: str, *, subtree: bool = True) -> list[Group[Watcher]]:
        """Return who may have to be told of a change of a node: those who watch its path and, with `subtree`, a
        directory of it. `Group.reached` are those of its watches that are not too shallow."""
        places = self._watched(path) if subtree else [(0, path)]
        return [
            Group(watcher, watches, distance)
            for distance, place in places
            if place in self._by_path
            for watcher, watches in self._by_path[place].items()
        ]

    def _watched(self, path: str) -> Iterator[tuple[int, str]]:
        """The path and the directories above it that may be watched, each with how far above it is."""
        yield 0, path
        distance, end = 1, path.rfind("/")
        while end > 0:
            if end in self._lengths:
                yield distance, path[:end]
            distance, end = distance + 1, path.rfind("/", 0, end)
        if path != "/" and not is_special(path):
            yield distance, "/"

    def special_events(self, name: str, domid: int) -> Iterable[tuple[Watch[Watcher], bytes]]:
        """Return who learns that a domain came or went, and the payload of the event of each.

        A plain watch of `@releaseDomain` is not told which domain; one with a depth of 1 or more, or of
        `@releaseDomain/<domid>`, is.
        """
        for watch in self._at(name):
            yield watch, join_strings(((f"{name}/{domid}" if watch.depth else name).encode(), watch.token))
        for watch in self._at(f"{name}/{domid}"):
            yield watch, join_strings((watch.registered, watch.token))

    def _at(self, path: str) -> Iterable[Watch[Watcher]]:
        return chain.from_iterable(self._by_path.get(path, {}).values())
