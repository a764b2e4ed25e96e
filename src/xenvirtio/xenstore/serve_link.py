"""What the pump needs of whatever carries a connection's bytes: a socket, or the ring of a domain."""

from __future__ import annotations

from abc import ABC, abstractmethod

from xenvirtio.errors import PeerProtocolError
from xenvirtio.xenstore.connection import Connection
from xenvirtio.xenstore.wire import Message


class Link(ABC):
    """One connection and its carrier. Only the pump's thread uses it.

    Each round of the pump: `next_message` some times, then `prepare`, then the state is saved, then `flush`. So nothing
    that a peer can see happens before the state that explains it is kept.
    """

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.due_s = 0.0
        """Not to be read before; inf: not before it has read its replies."""

    @property
    @abstractmethod
    def has_unsent(self) -> bool:
        """Has the peer not taken all that was queued for it?"""

    @property
    def wants_another_round(self) -> bool:
        """Is there more to send for which there is room already?"""
        return False

    @property
    @abstractmethod
    def is_congested(self) -> bool:
        """Is so much unsent that no further request is to be taken?"""

    @abstractmethod
    def next_message(self) -> Message | None:
        """Return the next whole request; None when there is none for now.

        Raises:
            PeerProtocolError: the peer is not to be listened to any more.
        """

    @abstractmethod
    def refuse(self, error: PeerProtocolError) -> bool:
        """The peer has broken the protocol. Is the link to be closed?"""

    def prepare(self) -> None:  # noqa: B027 - nothing, unless somebody wants more
        """Have recorded what the state has to hold before `flush`."""

    def settle(self) -> bool:
        """The state is kept. True: something was done that has to be kept as well before `flush`."""
        return False

    @abstractmethod
    def flush(self) -> None:
        """Send what the carrier takes.

        Raises:
            OSError: the peer is gone.
        """

    @abstractmethod
    def set_interest(self, *, reads: bool) -> None:
        """Ask to be told when the peer has sent something (`reads`) or has made room."""

    @abstractmethod
    def close(self) -> None:
        """Let go of the carrier."""
