"""Byte code for the lab's Python, made on the host: the emulated machine takes seconds to compile what it imports.

Byte code fits one minor version of CPython on any processor, so a Python 3.13 of the host makes it. Without one
everything works as well, only slower to start.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from xenvirtio.lab.process import jobs, run_logged

PYTHON = "python3.13"
"""Debian 13's."""

_PROBE = "import sys; sys.exit(sys.version_info[:2] != (3, 13))"


@functools.cache
def host_python() -> str | None:
    """A Python of this machine with the byte code of the lab's, or None."""
    for candidate in _candidates():
        try:
            if subprocess.run([candidate, "-c", _PROBE], capture_output=True, timeout=30, check=False).returncode == 0:
                return candidate
        except (OSError, subprocess.TimeoutExpired):
            continue
    return None


def compile_tree(root: Path, folder: str, log: Path, *, checked: bool) -> None:
    """Write `__pycache__` for all modules below `root/folder`, if a Python for it is there.

    Times of files do not matter to it. `checked` byte code is compared with its source at every import, for what
    somebody may change in place; the other kind is taken as it is.
    """
    python = host_python()
    if python is None:
        return
    command: list[str | Path] = [python, "-m", "compileall", "-q", f"-j{jobs()}", "-s", root, "-p", "/"]
    command += ["--invalidation-mode", "checked-hash" if checked else "unchecked-hash", root / folder]
    run_logged(f"compiling {folder} to byte code", command, log)


def byte_code_input() -> str:
    """For an artifact's key: whether its modules come with byte code."""
    return "source only" if host_python() is None else "byte code"


def _candidates() -> Iterator[str]:
    if sys.version_info[:2] == (3, 13):
        yield sys.executable
    found = shutil.which(PYTHON)
    if found:
        yield found
    # Version managers keep theirs off PATH.
    for folder in (os.environ.get("PYENV_ROOT", "~/.pyenv") + "/versions", "~/.local/share/uv/python"):
        for path in sorted(Path(folder).expanduser().glob(f"*3.13*/bin/{PYTHON}")):
            yield str(path)
