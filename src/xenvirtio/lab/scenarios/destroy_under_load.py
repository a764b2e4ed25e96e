"""A guest is destroyed in the middle of its I/O; the daemon lives on, the other guest does not notice."""

from __future__ import annotations

from typing import Any

from xenvirtio.lab.hypervisor_view import look, wait_same
from xenvirtio.lab.load import Load
from xenvirtio.lab.scenarios.kernel_log import KernelLog
from xenvirtio.lab.scenarios.registry import Scenario
from xenvirtio.lab.scenarios.stage import Stage
from xenvirtio.lab.scenarios.tree import check_disk
from xenvirtio.lab.toolstack import GuestConfig

TIMES = 3
PROGRESS = 100


def run(stage: Stage) -> dict[str, Any]:
    kept, lost = stage.disk("kept", 8), stage.disk("lost", 8)
    with stage.serve() as backend:
        idle = backend.holdings()
        bystander = stage.toolstack.create(GuestConfig("bystander", disks=(kept,)))
        log = KernelLog(bystander)
        load = Load(bystander, "verify /dev/vda -d 4 -t 3600")
        backend.wait_progress("bystander", PROGRESS, 120)
        alone, xen = backend.holdings(), look(stage.dom0)
        for _ in range(TIMES):
            victim = stage.toolstack.create(GuestConfig("victim", vcpus=2, disks=(lost,)))
            Load(victim, "verify /dev/vda -d 16 -t 3600")
            backend.wait_progress("victim", backend.requests_of("victim") + PROGRESS, 120)
            victim.destroy()
            stage.toolstack.wait_gone(victim.domid)
            backend.wait_holdings(alone, but_chunks=True)
            assert load.is_running(), "the other guest's load ended"
        served = backend.requests_of("bystander")
        backend.wait_progress("bystander", served + PROGRESS, 120)
        result = load.finish()
        log.check_silent()
        check_disk(stage.dom0, bystander, kept.target)
        wait_same(stage.dom0, xen)
        bystander.shut_down()
        backend.wait_holdings(idle)
    return {"destroyed": TIMES, "bystander_requests": result.requests}


SCENARIO = Scenario("destroy-under-load", "xl destroy in the middle of I/O, another guest undisturbed", run)
