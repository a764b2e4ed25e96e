"""Reading a TOML document strictly: every wrong key or value names the place, what was found and what is allowed.

A file is read by asking for each key once; what nobody asked for is unknown and refused by `finish`.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from xenvirtio.errors import ConfigurationError

Check = Callable[[Any], str | None]
"""Returns what is allowed when the value is not, else None."""


def between(low: int, high: int) -> Check:
    return lambda value: None if low <= value <= high else f"a number from {low} to {high}"


def one_of(names: Iterable[str]) -> Check:
    allowed = tuple(names)
    return lambda value: None if value in allowed else "one of " + ", ".join(allowed)


def load_toml(path: Path) -> Table:
    """Read a file.

    Raises:
        ConfigurationError: unreadable, not UTF-8, not TOML.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(str(path), error.strerror or str(error), "give the path of a readable file") from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(str(path), f"not UTF-8 text (byte {error.start})") from error
    return parse_toml(text, str(path))


def parse_toml(text: str, source: str) -> Table:
    """Parse a document; `source` names it in errors.

    Raises:
        ConfigurationError: not TOML.
    """
    try:
        return Table(tomllib.loads(text), source)
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(source, f"not TOML: {error}") from error


_TYPE_NAMES = {str: "text in quotes", bool: "true or false", int: "a whole number"}
_ABSENT: Any = object()


class Table:
    """One TOML table being read: every key is asked for once, what is left over is unknown."""

    def __init__(self, values: dict[str, Any], where: str) -> None:
        self.where = where
        self._values = values
        self._asked: list[str] = []

    def keys_present(self) -> list[str]:
        """The keys that are there, for a table whose keys are names."""
        return list(self._values)

    def need(self, key: str, kind: type[Any], *, check: Check | None = None) -> Any:
        if key not in self._values:
            raise ConfigurationError(self.where, f"key {key!r} is missing", f"it takes {_TYPE_NAMES[kind]}")
        return self.get(key, kind, _ABSENT, check=check)

    def optional(self, key: str, kind: type[Any], *, check: Check | None = None) -> Any:
        return self.get(key, kind, None, check=check) if key in self._values else self._ask(key)

    def get(self, key: str, kind: type[Any], default: Any, *, check: Check | None = None) -> Any:
        self._ask(key)
        if key not in self._values:
            return default
        value = self._values[key]
        # bool is an int to Python, not to the person who wrote the file
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise ConfigurationError(f"{self.where}: {key}", f"found {value!r}", f"allowed: {_TYPE_NAMES[kind]}")
        allowed = check(value) if check else None
        if allowed:
            raise ConfigurationError(f"{self.where}: {key}", f"found {value!r}", f"allowed: {allowed}")
        return value

    def table(self, key: str) -> Table | None:
        self._ask(key)
        if key not in self._values:
            return None
        value = self._values[key]
        if not isinstance(value, dict):
            raise ConfigurationError(f"{self.where}: {key}", f"found {value!r}", "allowed: a table")
        return Table(value, f"{self.where}: {key}")

    def tables(self, key: str) -> list[Table]:
        self._ask(key)
        value = self._values.get(key, [])
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            raise ConfigurationError(f"{self.where}: {key}", f"found {value!r}", f"allowed: tables headed [[{key}]]")
        return [Table(item, f"{self.where}: {key}[{number}]") for number, item in enumerate(value)]

    def finish(self) -> None:
        """Refuse keys that nobody asked for."""
        for key in self._values:
            if key not in self._asked:
                raise ConfigurationError(self.where, f"unknown key {key!r}", "allowed: " + ", ".join(self._asked))

    def _ask(self, key: str) -> None:
        if key not in self._asked:
            self._asked.append(key)
