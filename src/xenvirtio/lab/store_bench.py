"""Measures our XenStore server beside C xenstored, both in the same dom0, by the same client program, in turn.

C xenstored serves the machine all the while, as it always does; ours serves a socket of its own. Both have privileged
clients of their sockets only, so neither hypercalls nor rings are in the figures. What the client needs for itself is
in both; processor time (`server_us`) is each server's own.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from typing import Any

from xenvirtio.errors import ResourceError
from xenvirtio.lab.dom0 import CommandError
from xenvirtio.lab.machine import Machine

SOCKET = "/run/xenvirtio-bench"
C_SOCKET = "/run/xenstored/socket"
REPORT = "/run/lab/store-bench.json"
SERVER_LOG = "/run/lab/store-bench.log"
START_TIMEOUT_S = 120
BUILD_UP_S = 600
"""What connecting and watching may take beside the measurements themselves."""


def measure_store(
    machine: Machine, domains: str, seconds: float, rounds: int, progress: Callable[[str], None]
) -> dict[str, Any]:
    """Return the report of `xenvirtio bench store`; `domains` as that takes it.

    Raises:
        ResourceError: a server did not start or the bench failed.
    """
    dom0 = machine.dom0()
    server = dom0.spawn(f"xenvirtio store serve --socket {SOCKET}", SERVER_LOG)
    try:
        dom0.run(f"until [ -S {SOCKET} ]; do sleep 0.2; done", START_TIMEOUT_S)
        progress("C xenstored and xenvirtio in turn; nothing is shown until all is measured")
        words = ["xenvirtio", "bench", "store", "--format", "json", "--domains", domains]
        words += ["--socket", f"c={C_SOCKET}", "--socket", f"xenvirtio={SOCKET}"]
        words += ["--seconds", str(seconds), "--rounds", str(rounds)]
        longest_s = BUILD_UP_S + 40 * seconds * (rounds + 1) * (domains.count(",") + 1)
        dom0.run(f"{shlex.join(words)} >{REPORT}", longest_s)
        report: dict[str, Any] = json.loads(dom0.read_file(REPORT))
        report["note"] = f"dom0, {dom0.run('uname -srm').output.strip()}; C xenstored as Debian builds it"
        return report
    except CommandError as error:
        raise ResourceError(f"{error}; our server said: {server.output()[-500:]}") from error
    finally:
        server.signal("TERM")
