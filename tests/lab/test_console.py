from __future__ import annotations

import socket
import threading
from pathlib import Path

import pytest

from xenvirtio.errors import ResourceError
from xenvirtio.lab.console import SWITCH, switch_input, trouble_in


def _xen(end: socket.socket, names: list[str]) -> None:
    """Gives its input to one after the other, as Xen does."""
    at = 0
    while data := end.recv(64):
        for _ in range(data.count(SWITCH)):
            at = (at + 1) % len(names)
            line = f"(XEN) *** Serial input to {names[at]} (type 'CTRL-a' three times to switch input)"
            end.sendall(f"noise\r\n{line}\r\n".encode())


@pytest.fixture
def console() -> socket.socket:
    ours, theirs = socket.socketpair()
    threading.Thread(target=_xen, args=(theirs, ["DOM0", "DOM1", "DOM2", "Xen"]), daemon=True).start()
    return ours


def test_input_goes_to_the_domain_that_is_asked_for_and_back(console: socket.socket) -> None:
    switch_input(console, 2)
    switch_input(console, 0)
    console.close()


def test_a_domain_that_is_not_there_is_refused_after_one_round(console: socket.socket) -> None:
    with pytest.raises(ResourceError, match="DOM1, DOM2, Xen, DOM0, not to domain 7"):
        switch_input(console, 7)
    console.close()


def test_a_domain_that_panics_is_no_lost_machine(tmp_path: Path) -> None:
    log = tmp_path / "serial.log"
    log.write_text("(XEN) DOM1: Kernel panic - not syncing\n")
    assert trouble_in(log) is None
    log.write_text("[ 1.0] Kernel panic - not syncing\n")
    assert trouble_in(log) is not None
