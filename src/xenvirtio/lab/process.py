"""Runs the host programs a build needs, their output in a log file, their failure in one readable error."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from xenvirtio.errors import ResourceError

LINES_SHOWN = 15
"""How many of a failed command's last lines its error carries."""


def run_logged(
    what: str,
    command: Sequence[str | Path],
    log: Path,
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> None:
    """Run `command`, its output appended to `log`; `env` is added to the environment.

    Raises:
        ResourceError: it could not be started or ended with another status than 0; the message says
            `what` was being done, and carries the last lines of the log.
    """
    words = [str(word) for word in command]
    try:
        with log.open("ab") as output:
            done = subprocess.run(
                words,
                cwd=cwd,
                env={**os.environ, "LC_ALL": "C", **(env or {})},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                check=False,
            )
    except OSError as error:
        raise ResourceError(f"{what}: {words[0]}: {error.strerror}") from error
    if done.returncode:
        tail = log.read_text(errors="replace").splitlines()[-LINES_SHOWN:]
        raise ResourceError(f"{what}: {words[0]} ended with {done.returncode}; {log} ends:\n  " + "\n  ".join(tail))


def output_of(what: str, command: Sequence[str | Path], *, env: Mapping[str, str] | None = None) -> str:
    """What `command` prints on its standard output.

    Raises:
        ResourceError: as in `run_logged`, with what it printed on its standard error.
    """
    words = [str(word) for word in command]
    try:
        done = subprocess.run(
            words,
            env={**os.environ, "LC_ALL": "C", **(env or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError as error:
        raise ResourceError(f"{what}: {words[0]}: {error.strerror}") from error
    if done.returncode:
        raise ResourceError(f"{what}: {words[0]} ended with {done.returncode}: {done.stderr.strip()}")
    return done.stdout


def jobs() -> int:
    """How many compilers to run at once: the processors this process may use."""
    return len(os.sched_getaffinity(0))


_print_lock = threading.Lock()


def plain_progress(message: str) -> None:
    """One line of progress on the terminal."""
    with _print_lock:
        print(message, flush=True)
