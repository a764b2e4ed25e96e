"""The daemon is killed ten times under verified I/O; its successors take over and the guest notices nothing."""

from __future__ import annotations

import random
import time
from typing import Any

from xenvirtio.lab.hypervisor_view import used_servers
from xenvirtio.lab.load import Load
from xenvirtio.lab.scenarios.kernel_log import KernelLog
from xenvirtio.lab.scenarios.registry import Scenario
from xenvirtio.lab.scenarios.stage import Stage
from xenvirtio.lab.scenarios.tree import check_disk
from xenvirtio.lab.toolstack import GuestConfig

KILLS = 10
PROGRESS = 50
"""Requests that every successor serves before its own end."""


def run(stage: Stage) -> dict[str, Any]:
    disk = stage.disk("takeover", 12)
    moments = random.Random(2)
    pauses = []
    with stage.serve() as backend:
        guest = stage.toolstack.create(GuestConfig("takeover", vcpus=2, disks=(disk,)))
        log = KernelLog(guest)
        load = Load(guest, "verify /dev/vda -d 8 -t 3600")
        for _ in range(KILLS):
            backend.wait_progress("takeover", PROGRESS, 120)
            time.sleep(moments.random())  # not a wait for anything: the moment of the kill is left to chance
            assert load.is_running(), "the load ended before its time"
            killed = time.monotonic()
            backend.kill()
            backend.start()
            pauses.append(round(time.monotonic() - killed, 2))
        backend.wait_progress("takeover", PROGRESS, 120)
        result = load.finish(600)
        log.check_silent()
        adopted = [record["adopted"] for record in backend.records() if record["message"] == "guest found"]
        assert adopted == [False] + [True] * KILLS, f"not every successor took the server over: {adopted}"
        servers = used_servers(stage.dom0, guest.domid)
        assert servers == 1, f"the guest has {servers} IOREQ servers after {KILLS} takeovers"
        check_disk(stage.dom0, guest, disk.target)
        log.check_silent()
        guest.shut_down()
    return {"kills": KILLS, "requests": result.requests, "swept": result.swept, "pauses_s": pauses}


SCENARIO = Scenario("takeover", "kill -9 of the daemon under verified I/O, ten times", run)
