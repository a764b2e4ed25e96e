"""Where the lab keeps things: one cache folder, in it a folder per artifact and version of its inputs.

What always holds: an artifact folder is complete or absent. It is filled under another name and renamed,
while a lock of the artifact's name keeps a second build out.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

KEY_LENGTH = 16
"""Hexadecimal digits of the input hash kept in folder names; 64 bits are plenty for a cache."""


def cache_root() -> Path:
    """`$XDG_CACHE_HOME/xenvirtio`, by default `~/.cache/xenvirtio`; made when missing."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    root = Path(base) / "xenvirtio"
    root.mkdir(parents=True, exist_ok=True)
    return root


def run_folder(name: str = "default") -> Path:
    """The folder with the sockets, logs and state of a running machine; made when missing.

    Unix socket paths are limited to 107 bytes, so names here stay short.
    """
    folder = cache_root() / "run" / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def key_of(*inputs: str | bytes | Path) -> str:
    """A hash of all inputs in order: text and bytes as they are, a path by what its file holds."""
    digest = hashlib.sha256()
    for one in inputs:
        data = one.read_bytes() if isinstance(one, Path) else one.encode() if isinstance(one, str) else one
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()[:KEY_LENGTH]


@contextmanager
def locked(name: str) -> Iterator[None]:
    """Hold the cache's lock of that name; waits for another process that holds it. Released when a holder dies."""
    folder = cache_root() / "locks"
    folder.mkdir(exist_ok=True)
    with open(folder / f"{name}.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def find_artifact(name: str, key: str) -> Path | None:
    """The finished artifact's folder, or None when it has to be built."""
    folder = cache_root() / "artifacts" / f"{name}-{key}"
    return folder if folder.is_dir() else None


def artifact(name: str, key: str, build: Callable[[Path, Path], None]) -> Path:
    """The folder of an artifact, made by `build(result, scratch)` when this key is not there yet.

    `result` becomes the artifact, `scratch` is thrown away after success. After a failure both are left
    for a look under `work/`, until the next attempt.
    """
    found = find_artifact(name, key)
    if found is not None:
        return found
    with locked(name):
        found = find_artifact(name, key)
        if found is not None:
            return found
        work = cache_root() / "work" / name
        if work.exists():
            shutil.rmtree(work)
        (work / "result").mkdir(parents=True)
        (work / "scratch").mkdir()
        build(work / "result", work / "scratch")
        final = cache_root() / "artifacts" / f"{name}-{key}"
        final.parent.mkdir(exist_ok=True)
        os.rename(work / "result", final)
        shutil.rmtree(work)
        return final


def forget_old(name: str, key: str) -> None:
    """Remove artifacts of this name with other keys, so that a cache of what changes daily does not grow."""
    for folder in (cache_root() / "artifacts").glob(f"{name}-*"):
        if folder.name != f"{name}-{key}" and len(folder.name) == len(name) + 1 + KEY_LENGTH:
            shutil.rmtree(folder, ignore_errors=True)
