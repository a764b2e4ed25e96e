"""Three guests at once, one process: verified I/O in all of them at the same time, no byte in another's image."""

from __future__ import annotations

from typing import Any

from xenvirtio.lab.load import Load
from xenvirtio.lab.scenarios.kernel_log import KernelLog
from xenvirtio.lab.scenarios.registry import Scenario
from xenvirtio.lab.scenarios.stage import Stage
from xenvirtio.lab.scenarios.tree import check_disk
from xenvirtio.lab.toolstack import GuestConfig

NAMES = ("red", "green", "blue")
REQUESTS_TOGETHER = 200
"""How many requests each guest makes while the other two are at work too."""


def run(stage: Stage) -> dict[str, Any]:
    disks = {name: stage.disk(name, 8) for name in NAMES}
    with stage.serve() as backend:
        guests = [stage.toolstack.create(GuestConfig(name, disks=(disks[name],))) for name in NAMES]
        logs = [KernelLog(guest) for guest in guests]
        loads = [
            Load(guest, f"verify /dev/vda -d 4 -t 600 -s {seed}") for seed, guest in enumerate(guests, 1)
        ]
        before = {name: backend.requests_of(name) for name in NAMES}
        for name in NAMES:
            backend.wait_progress(name, before[name] + REQUESTS_TOGETHER, 300)
        results = [load.finish() for load in loads]
        for log in logs:
            log.check_silent()
        sums = {check_disk(stage.dom0, guest, disks[guest.name].target) for guest in guests}
        assert len(sums) == len(NAMES), "two guests wrote the same, though with other seeds"
        for guest in guests:
            guest.shut_down()
    return {"requests": {name: result.requests for name, result in zip(NAMES, results, strict=True)}}


SCENARIO = Scenario("three-guests", "three guests at once, one process, verified I/O in all", run)
