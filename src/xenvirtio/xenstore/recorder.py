"""Who is told, change by change, what a restarted server has to find again. `journal` is the one that keeps it."""

from __future__ import annotations

from typing import Protocol

from xenvirtio.xenstore.permissions import Permissions
from xenvirtio.xenstore.stream import RingStream


class Recorder(Protocol):
    """Called after each change, in order; must not change the server. Only clients of rings are told of: those of
    sockets reconnect and register again by themselves."""

    def node_put(self, path: str, value: bytes, permissions: Permissions) -> None:
        """A node was made or replaced."""

    def node_discarded(self, path: str) -> None:
        """A node is gone; its children went before it."""

    def domain_changed(self, domid: int) -> None:
        """What is known of a domain has changed, or it was forgotten with all that its ring had."""

    def quota_changed(self) -> None:
        """The common quota has changed."""

    def watch_added(self, domid: int, registered: bytes, token: bytes, depth: int | None) -> None: ...

    def watch_removed(self, domid: int, registered: bytes, token: bytes) -> None: ...

    def transaction_opened(self, domid: int, number: int) -> None: ...

    def transaction_closed(self, domid: int, number: int) -> None: ...

    def ring_moved(self, domid: int, stream: RingStream | None) -> None:
        """A ring's streams have moved on; None: the ring is to be reset."""


class NoRecorder:
    """Nothing has to survive."""

    def node_put(self, path: str, value: bytes, permissions: Permissions) -> None: ...

    def node_discarded(self, path: str) -> None: ...

    def domain_changed(self, domid: int) -> None: ...

    def quota_changed(self) -> None: ...

    def watch_added(self, domid: int, registered: bytes, token: bytes, depth: int | None) -> None: ...

    def watch_removed(self, domid: int, registered: bytes, token: bytes) -> None: ...

    def transaction_opened(self, domid: int, number: int) -> None: ...

    def transaction_closed(self, domid: int, number: int) -> None: ...

    def ring_moved(self, domid: int, stream: RingStream | None) -> None: ...
