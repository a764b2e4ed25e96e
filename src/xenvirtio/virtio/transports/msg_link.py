"""How the two ends of a virtio-msg bus agree that they talk to each other: the same over every carrier.

Each end names itself by an **incarnation**, a random number other than 0 that is drawn at every start, and says which
incarnation of the other it has **seen**. A session is a pair: both have seen each other. So

- what lies in shared memory or in a queue from before counts for nothing until the other end has repeated the number
  that was drawn a moment ago;
- an end that starts anew is noticed at once, whatever the other was doing;
- the other end first gives up all it did for the old session (the device side stops its queues: nothing writes to
  memory any more), and only then says that it has seen the new one.

    announce: draw a number, see nobody            state: ABSENT while there is no other end
    the other end has a number we have not seen    state: CHANGED; give everything up, then `accept`
    it has not seen ours yet                       state: WAITING
    both have seen each other                      state: OPEN; messages may pass
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Protocol


class LinkState(Enum):
    ABSENT = "absent"
    CHANGED = "changed"
    WAITING = "waiting"
    OPEN = "open"


Draw = Callable[[], int]
"""Returns a random 32-bit number."""


def draw_incarnation(draw: Draw, *, other_than: int) -> int:
    """Draw a number that is neither 0 nor the one before."""
    while True:
        number = draw() & 0xFFFFFFFF
        if number not in (0, other_than):
            return number


class MessageLink(Protocol):
    """One end of a carrier of messages. Calls come one at a time, none of them waits."""

    @property
    def state(self) -> LinkState: ...

    @property
    def problem(self) -> str | None:
        """Why an end that is there is not accepted (another version, another size); None when all is well."""
        ...

    def announce(self) -> None:
        """Begin anew, under a new incarnation; a session that was open is over."""
        ...

    def remind(self) -> None:
        """Repeat the announcement to an end that may not have been there; for whoever waits, once a second or so."""
        ...

    def accept(self) -> None:
        """Take up the session that the other end offers: in state CHANGED, when nothing of the last one is left."""
        ...

    def send(self, data: bytes) -> bool:
        """Send one message; False when there is no room now, and then the other end's progress wakes us.

        Raises:
            SessionLostError: there is no session.
            PeerProtocolError: the other end broke a rule of the carrier.
        """
        ...

    def receive(self) -> bytes | None:
        """Take the next message, or None. Raises as `send`."""
        ...

    def leave(self) -> None:
        """Say goodbye: the other end sees ABSENT."""
        ...
