"""Which operations a server speaks: all of them, or what a small dom0 has."""

from __future__ import annotations

from dataclasses import dataclass

from xenvirtio.xenstore.wire import MessageType


@dataclass(frozen=True, slots=True)
class Profile:
    """What a server speaks. A reduced one lets a client be tried against less than everything."""

    name: str
    operations: frozenset[MessageType]
    echoes_unknown: bool = True
    """Does the ENOSYS for an unknown operation carry the request's ids? Zephyr's does not."""


FULL = Profile("full", frozenset(MessageType) - {MessageType.WATCH_EVENT, MessageType.ERROR})
ZEPHYR_DOM0 = Profile(
    "zephyr-dom0",
    frozenset(
        {
            MessageType.CONTROL,
            MessageType.DIRECTORY,
            MessageType.READ,
            MessageType.GET_PERMS,
            MessageType.WATCH,
            MessageType.UNWATCH,
            MessageType.TRANSACTION_START,
            MessageType.TRANSACTION_END,
            MessageType.GET_DOMAIN_PATH,
            MessageType.WRITE,
            MessageType.MKDIR,
            MessageType.RM,
            MessageType.SET_PERMS,
            MessageType.RESET_WATCHES,
        }
    ),
    echoes_unknown=False,
)
