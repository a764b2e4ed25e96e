"""A state folder that one process holds at a time."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from xenvirtio.errors import ConfigurationError


@contextmanager
def only_one(folder: Path, program: str, remedy: str) -> Iterator[None]:
    """Hold `folder`, made when missing, until the block ends or the process does. `remedy` says how to choose another.

    Raises:
        ConfigurationError: it cannot be used, or another process of `program` holds it.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigurationError(str(folder), error.strerror or str(error), remedy) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise ConfigurationError(str(folder), f"another {program} is running here") from None
    try:
        yield
    finally:
        os.close(descriptor)
