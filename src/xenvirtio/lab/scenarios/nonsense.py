"""A guest's driver writes nonsense into its rings: its device asks for a reset, another guest notices nothing."""

from __future__ import annotations

import json
from typing import Any

from xenvirtio.lab.hypervisor_view import look, wait_same
from xenvirtio.lab.load import Load, run_load
from xenvirtio.lab.scenarios.kernel_log import KernelLog
from xenvirtio.lab.scenarios.registry import Scenario
from xenvirtio.lab.scenarios.stage import Stage
from xenvirtio.lab.scenarios.tree import check_disk
from xenvirtio.lab.toolstack import GuestConfig

ROUNDS = 306
"""Nine times each of badring's 34 variations, with other random numbers."""

DRIVER = "/sys/bus/platform/drivers/virtio-mmio"
WARNINGS = (r"needs a reset", r"FEATURES_OK refused")

WAIT_FOR_DISK = (
    "for n in $(seq 600); do [ -b /dev/vda ] && break; sleep 0.1; done; "
    "[ -b /dev/vda ] || { ls /sys/block; dmesg | tail -n 20; false; }"
)
"""Fails with what the guest's kernel has to say, where a mere time-out would leave us guessing."""


def run(stage: Stage) -> dict[str, Any]:
    disks = {name: stage.disk(name, 8) for name in ("good", "hostile")}
    with stage.serve(expected_warnings=WARNINGS) as backend:
        idle = backend.holdings()
        good = stage.toolstack.create(GuestConfig("good", disks=(disks["good"],)))
        hostile = stage.toolstack.create(GuestConfig("hostile", vcpus=2, disks=(disks["hostile"],)))
        log = KernelLog(good)
        load = Load(good, "verify /dev/vda -d 4 -t 3600")
        served, xen = backend.holdings(), look(stage.dom0)

        run_load(hostile, "fill /dev/vda -d 8 -s 5")
        device = hostile.run("basename $(readlink -f /sys/block/vda/device/..)").output.strip()
        hostile.run(f"echo {device} >{DRIVER}/unbind && [ ! -e /dev/vda ]")
        base = f"0x{device.partition('.')[0]}"
        answer = hostile.run(f"badring {base} {stage.mode.name.lower()} 11 {ROUNDS}", 900, check=False)
        assert answer.status == 0, f"badring ended with {answer.status}: {answer.output.strip()}"
        facts: dict[str, Any] = json.loads(answer.output[answer.output.index("{") :])
        assert facts["resets_asked"] >= ROUNDS // 3, f"too few requests for a reset: {facts}"
        assert backend.is_running(), "the daemon did not survive"
        asked = [warning for warning in backend.warnings() if "needs a reset" in warning]
        assert asked, "the daemon says nothing of a device that needs a reset"

        hostile.run(f"echo {device} >{DRIVER}/bind && {WAIT_FOR_DISK}", 120)
        run_load(hostile, "verify /dev/vda -d 8 -t 2")
        check_disk(stage.dom0, hostile, disks["hostile"].target)
        backend.wait_holdings(served, but_chunks=True)
        wait_same(stage.dom0, xen)

        result = load.finish()
        log.check_silent()
        check_disk(stage.dom0, good, disks["good"].target)
        hostile.shut_down()
        good.shut_down()
        backend.wait_holdings(idle)
    return {**facts, "good_guest_requests": result.requests, "daemon_warnings": len(asked)}


SCENARIO = Scenario("nonsense", "a driver writes nonsense into its rings and registers; only its device suffers", run)
