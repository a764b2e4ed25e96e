"""Memory that is mapped until somebody closes it."""

from __future__ import annotations

import threading
from collections.abc import Callable


class OwnedMapping:
    """A `Mapping` of the capabilities: an address, and what must happen once when it is given up."""

    def __init__(self, address: int, length_bytes: int, release: Callable[[], None]) -> None:
        self._address = address
        self._length_bytes = length_bytes
        self._release: Callable[[], None] | None = release
        self._lock = threading.Lock()

    @property
    def address(self) -> int:
        return self._address

    @property
    def length_bytes(self) -> int:
        return self._length_bytes

    def close(self) -> None:
        with self._lock:
            release, self._release = self._release, None
        if release is not None:
            release()

    def __enter__(self) -> OwnedMapping:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


class OpenMappings:
    """The mappings that go when the descriptor they were made through is closed."""

    def __init__(self) -> None:
        self._open: set[OwnedMapping] = set()
        self._lock = threading.Lock()

    def add(self, address: int, length_bytes: int, release: Callable[[], None]) -> OwnedMapping:
        def forget_and_release() -> None:
            with self._lock:
                self._open.discard(mapping)
            release()

        mapping = OwnedMapping(address, length_bytes, forget_and_release)
        with self._lock:
            self._open.add(mapping)
        return mapping

    def close(self) -> None:
        with self._lock:
            left = list(self._open)
        for mapping in left:
            mapping.close()
