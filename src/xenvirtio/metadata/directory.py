"""The interface that XenStore, a static plan and Argo implement alike.

A frontend registers a device: who it is, how it is reached, where its memory and queues are. A backend finds what
concerns it, and is told of changes. Records are small texts, so that every channel can carry them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from xenvirtio.ids import DomId

NAME_MAX = 63
FIELDS_MAX = 32
VALUE_MAX = 512
"""Bounds of a record. Without them one domain could make a backend keep as much as it likes."""


@dataclass(frozen=True, slots=True)
class DeviceRecord:
    """One registered device.

    `domid` is who registered it, as the channel vouches for it (XenStore's owner, Argo's stamp, the plan), never as the
    record says. `fields` are what the ends need to meet: base, irq, grants; region, channel; queue addresses.
    """

    name: str
    type: str
    domid: DomId
    fields: Mapping[str, str] = field(default_factory=dict)


class Directory(Protocol):
    """Where devices are registered and found. Every method may raise XenvirtioError's children."""

    def register(self, name: str, type: str, fields: Mapping[str, str]) -> None:
        """Announce a device of this domain, or replace what was announced under that name.

        Raises:
            ConfigurationError: a name, type or field that no channel carries; or, with a static plan, one that
                contradicts it.
        """
        ...

    def withdraw(self, name: str) -> None:
        """Take an announcement back; one that is not there is fine."""
        ...

    def find(self, *, type: str | None = None) -> list[DeviceRecord]:
        """Return what is registered now, by other domains and this one, in the order of domid and name.

        A record that breaks the bounds is left out, and logged once: another domain's nonsense is no error of ours.
        """
        ...

    def fileno(self) -> int:
        """Readable when `find` may have changed; for a selector."""
        ...

    def wait_changed(self, timeout_s: float) -> bool:
        """Wait until `find` may give something else than before; return whether that is so. Burns no CPU."""
        ...

    def close(self) -> None: ...
