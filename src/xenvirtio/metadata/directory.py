"""The interface that XenStore, a static plan and Argo implement alike.

A frontend registers a device: who it is, how it is reached, where its memory and queues are. A backend finds what
concerns it, and is told of changes. Records are small texts, so that every channel can carry them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from xenvirtio.errors import ConfigurationError
from xenvirtio.ids import DomId

NAME_MAX = 63
FIELDS_MAX = 32
VALUE_MAX = 512
"""Bounds of a record; VALUE_MAX counts bytes of UTF-8. Without them one domain could make a backend keep as much as it
likes."""

RECORDS_MAX = 64
"""Of one domain; what goes beyond is left out."""

_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
_WORD_SHAPE = f"letters, digits, _ . and -, the first a letter or digit, {NAME_MAX} at most"


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


def check_record(name: str, type: str, fields: Mapping[str, str]) -> None:
    """Check what every channel can carry, the bounds above included.

    Raises:
        ConfigurationError: says which part, what was found, what is allowed.
    """
    for where, word in (("metadata: name", name), (f"metadata: {name}: type", type)):
        _check_word(where, word)
    if len(fields) > FIELDS_MAX:
        raise ConfigurationError(f"metadata: {name}", f"{len(fields)} fields", f"allowed: {FIELDS_MAX}")
    for key, value in fields.items():
        _check_word(f"metadata: {name}: field", key)
        problem = _value_problem(value)
        if problem is not None:
            allowed = f"allowed: printable text of at most {VALUE_MAX} bytes"
            raise ConfigurationError(f"metadata: {name}: {key}", problem, allowed)


def _check_word(where: str, word: str) -> None:
    if not _WORD.fullmatch(word):
        raise ConfigurationError(where, f"found {word[:80]!r}", f"allowed: {_WORD_SHAPE}")


def _value_problem(value: str) -> str | None:
    if not value.isprintable():
        return f"found {value[:80]!r}"
    length_bytes = len(value.encode("utf-8", "surrogatepass"))
    return f"found {length_bytes} bytes" if length_bytes > VALUE_MAX else None


def select(records: list[DeviceRecord], type: str | None) -> list[DeviceRecord]:
    """Return those of a type (of any, without one) in the order that `Directory.find` promises."""
    chosen = [record for record in records if type in (None, record.type)]
    return sorted(chosen, key=lambda record: (record.domid, record.name))
