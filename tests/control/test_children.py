"""A child is started again whenever it ends: at once after a steady life, later and later after short ones."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from xenvirtio.control.children import DELAY_FIRST_S, DELAY_MOST_S, STEADY_S, Child


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def end(child: Child) -> None:
    assert child.pid is not None
    os.kill(child.pid, signal.SIGKILL)
    assert select.select([child.fileno()], [], [], 30)[0]


def test_restarts_and_their_delays(tmp_path: Path) -> None:
    clock = Clock()
    child = Child("store", ["store", "serve", "--socket", str(tmp_path / "s")], clock=clock)
    child.start()
    try:
        delays = []
        for _ in range(9):
            end(child)
            child.check()
            assert child.last_code == -signal.SIGKILL
            delays.append(child.due_in_s() or 0.0)
            child.check()
            assert child.pid is None
            clock.now_s += delays[-1] + 0.001
            child.check()
            assert child.pid is not None
        assert delays[:3] == pytest.approx([DELAY_FIRST_S, DELAY_FIRST_S * 2, DELAY_FIRST_S * 4])
        assert max(delays) == pytest.approx(DELAY_MOST_S)
        clock.now_s += STEADY_S
        end(child)
        child.check()
        assert child.pid is not None
        assert child.starts == 11
    finally:
        child.stop()
    assert child.fileno() == -1
    assert child.due_in_s() is None


def test_a_child_that_ends_by_itself_says_how(tmp_path: Path) -> None:
    child = Child("store", ["store", "serve", "--socket", str(tmp_path / "no" / "folder")])
    child.start()
    assert select.select([child.fileno()], [], [], 30)[0]
    child.check()
    assert child.last_code == 2
    child.stop()


def test_a_child_does_not_outlive_its_parent(tmp_path: Path) -> None:

    script = (
        "import time; from xenvirtio.control.children import Child\n"
        f"c = Child('store', ['store', 'serve', '--socket', {str(tmp_path / 's')!r}]); c.start()\n"
        "print(c.pid, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        descriptor = os.pidfd_open(pid)
        while not (tmp_path / "s").exists():
            assert not select.select([descriptor], [], [], 0.05)[0]
        parent.kill()
        assert select.select([descriptor], [], [], 30)[0]
        os.close(descriptor)
