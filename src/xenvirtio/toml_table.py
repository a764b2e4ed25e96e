"""Reading a TOML document strictly: every wrong key or value names the place, what was found and what is allowed.

A file is read by asking for each key once; what nobody asked for is unknown and refused by `finish`.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NoReturn

from xenvirtio.errors import ConfigurationError

Check = Callable[[Any], str | None]
"""Returns what is allowed when the value is not, else None."""


def between(low: int, high: int) -> Check:
    return lambda value: None if low <= value <= high else f"a number from {low} to {high}"


def one_of(names: Iterable[str]) -> Check:
    allowed = tuple(names)
    return lambda value: None if value in allowed else "one of " + ", ".join(allowed)


def toml_text(value: str) -> str:
    """A TOML basic string: JSON's escapes are TOML's, but for DEL."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


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


QUANTITY_MAX = (1 << 48) - 1
"""Largest address and size: what the stage-2 tables of an arm64 Xen span at most."""
_UNITS = {"": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
_SIZE = re.compile(r"(0x[0-9a-fA-F]{1,12}|[0-9]{1,15}) ?(KiB|MiB|GiB|)", re.ASCII)


def parse_size(value: object) -> int | None:
    """Bytes of 4096, "192MiB" or "0x1000"; None when it is neither, or larger than `QUANTITY_MAX`."""
    if isinstance(value, str):
        match = _SIZE.fullmatch(value)
        if match is None:
            return None
        value = int(match[1], 16 if match[1].startswith("0x") else 10) * _UNITS[match[2]]
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= QUANTITY_MAX else None


def parse_address(value: object) -> int | None:
    """0x50000000 or "0x50000000"; None when it is neither, or larger than `QUANTITY_MAX`."""
    if isinstance(value, str) and _UNITS.keys().isdisjoint({value[-3:]}):
        return parse_size(value)
    return None if isinstance(value, str) else parse_size(value)


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

    def value(self, key: str) -> Any:
        """The value as it stands, None when it is absent: for keys that may be of several kinds."""
        self._ask(key)
        return self._values.get(key)

    def refuse(self, key: str, allowed: str) -> NoReturn:
        """Raise for the value of `key`, which is not what is allowed."""
        raise ConfigurationError(f"{self.where}: {key}", f"found {self._values.get(key)!r}", f"allowed: {allowed}")

    def size(self, key: str, default: int | None = None) -> int:
        """Bytes: a whole number, or text such as "192MiB". Without a default the key must be there."""
        return self._quantity(key, default, parse_size, 'a size such as "192MiB", "64KiB" or 4096')

    def address(self, key: str, default: int | None = None) -> int:
        """A whole number, or text such as "0x50000000". Without a default the key must be there."""
        return self._quantity(key, default, parse_address, "an address such as 0x50000000, below 1 << 48")

    def optional_address(self, key: str) -> int | None:
        """An address, None when it is absent."""
        return self.address(key) if key in self._values else self.value(key)

    def _quantity(self, key: str, default: int | None, parse: Callable[[object], int | None], allowed: str) -> int:
        self._ask(key)
        if key not in self._values:
            if default is None:
                raise ConfigurationError(self.where, f"key {key!r} is missing", f"it takes {allowed}")
            return default
        number = parse(self._values[key])
        return self.refuse(key, allowed) if number is None else number

    def texts(self, key: str) -> list[str]:
        """A list of texts, empty when absent."""
        value = self.value(key)
        if value is None:
            return []
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            self.refuse(key, "a list of texts in quotes")
        return list(value)

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
