"""The keeper of a process's Argo rings, from the side of that process."""

from __future__ import annotations

import logging
import socket
import struct
import subprocess
import sys
from pathlib import Path

from xenvirtio.ids import ArgoPort, DomId

log = logging.getLogger(__name__)

ORDER = struct.Struct("<BxHI")
"""What to do, partner, port; with HOLD comes the memfd of the ring."""
HOLD, FORGET = 1, 2

PROGRAM = Path(__file__).with_name("argo_keeper.py")


class Keeper:
    """A process that holds the memory of rings, and unregisters those that are left when this process has died.

    Without one (it could not be started, or was killed) rings work all the same; only a kill then leaves them behind.
    """

    def __init__(self, privcmd: int, program: Path = PROGRAM) -> None:
        self._orders, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._orders.settimeout(5)  # it reads in a loop; a stopped one must not stop us
        command = [sys.executable, "-I", "-S", str(program), str(theirs.fileno()), str(privcmd)]
        self._process: subprocess.Popen[bytes] | None = None
        try:
            # In a session of its own: what ends our process group must not end it.
            self._process = subprocess.Popen(
                command,
                pass_fds=(theirs.fileno(), privcmd),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,  # or who reads our output to its end would wait for the keeper
                start_new_session=True,
                cwd="/",
            )
        except OSError as error:
            log.warning("no keeper for Argo rings, a kill would leave them registered: %s", error)
        finally:
            theirs.close()

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    def hold(self, file: int, port: ArgoPort, partner: DomId) -> None:
        self._order([ORDER.pack(HOLD, partner, port)], [file])

    def forget(self, port: ArgoPort, partner: DomId) -> None:
        self._order([ORDER.pack(FORGET, partner, port)], [])

    def _order(self, data: list[bytes], files: list[int]) -> None:
        if self._process is None:
            return
        try:
            socket.send_fds(self._orders, data, files, socket.MSG_NOSIGNAL)
        except OSError as error:
            log.warning("the keeper of Argo rings is gone, a kill would leave them registered: %s", error)
            self._process = None

    def close(self) -> None:
        """End it; what was not forgotten is unregistered by it now."""
        self._orders.close()
        if self._process is not None:
            process, self._process = self._process, None
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
