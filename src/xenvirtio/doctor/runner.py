"""Run a probe in a child process that may hang as it likes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import xenvirtio
from xenvirtio.doctor.answers import Answers

DEADLINE_S = 20.0
"""Python starts in well under a second, on a busy emulated machine in three; what a probe does takes milliseconds."""

GRACE_S = 1.0

PROBE_MODULE = "xenvirtio.doctor.probe"


def run_probe(
    name: str, arguments: Sequence[str] = (), *, deadline_s: float = DEADLINE_S, module: str = PROBE_MODULE
) -> Answers:
    """Return what `name` found until it ended or the deadline passed."""
    package_parent = str(Path(xenvirtio.__file__).parent.parent)
    path = os.pathsep.join(filter(None, [package_parent, os.environ.get("PYTHONPATH")]))
    # -P: a doctor run by root must not import what lies in the current directory
    child = subprocess.Popen(
        [sys.executable, "-P", "-m", module, name, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "PYTHONPATH": path},
        start_new_session=True,  # Ctrl-C must not end it between creating an IOREQ server and destroying it
    )
    hung = False
    try:
        output, _ = child.communicate(timeout=deadline_s)
    except subprocess.TimeoutExpired as late:
        hung = True
        output = late.output or b""
    finally:
        _end(child)
    return Answers.parse(output.decode(errors="replace").splitlines(), hung=hung)


def _end(child: subprocess.Popen[bytes]) -> None:
    """Stop it, gently first. One that sleeps in the kernel uninterruptibly is left behind: nothing can be done."""
    for stop in (child.terminate, child.kill):
        if child.poll() is not None:
            break
        stop()
        try:
            child.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            continue
    if child.stdout is not None:
        child.stdout.close()
