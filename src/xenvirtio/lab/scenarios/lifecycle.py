"""Twenty guests come and go, one reboots: the daemon and Xen hold nothing of them afterwards."""

from __future__ import annotations

from typing import Any

from xenvirtio.lab.hypervisor_view import look, used_servers, wait_same
from xenvirtio.lab.load import run_load
from xenvirtio.lab.scenarios.registry import Scenario
from xenvirtio.lab.scenarios.stage import Stage
from xenvirtio.lab.toolstack import GuestConfig

CYCLES = 20


def run(stage: Stage) -> dict[str, Any]:
    disk = stage.disk("cycle", 16)
    config = GuestConfig("cycle", memory_mib=64, disks=(disk,))
    with stage.serve() as backend:
        idle = backend.holdings()
        before = look(stage.dom0)
        booted = 0
        for cycle in range(CYCLES):
            # Every other guest is destroyed in the middle of its boot, somewhere about its driver's first accesses.
            boots = cycle % 2 == 0
            guest = stage.toolstack.create(config, wait=boots)
            if boots:
                run_load(guest, "verify /dev/vda -d 4 -t 0.3")
                booted += 1
            guest.destroy()
            stage.toolstack.wait_gone(guest.domid)
        backend.wait_holdings(idle)

        first = stage.toolstack.create(config)
        run_load(first, "fill /dev/vda -d 8 -s 7")
        second = first.reboot()
        assert second.domid != first.domid
        run_load(second, "check /dev/vda -d 8 -s 7")
        stage.toolstack.wait_gone(first.domid)
        servers = used_servers(stage.dom0, second.domid)
        assert servers == 1, f"the rebooted guest has {servers} IOREQ servers"
        second.shut_down()

        backend.wait_holdings(idle)
        wait_same(stage.dom0, before)
        left = stage.dom0.run(f"cd {backend.folder}/state && ls").output.split()
        assert left == ["lock"], f"state files of dead guests are left: {left}"
        stage.toolstack.wait_only_dom0()
    return {"cycles": CYCLES, "booted": booted, "descriptors": idle.descriptors.total(), "xen": str(before)}


SCENARIO = Scenario("lifecycle", "twenty create/destroy cycles and a reboot leave nothing behind", run)
