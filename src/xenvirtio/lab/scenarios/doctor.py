"""`xenvirtio doctor` in a dom0 where everything is there, with a real probe of a running guest."""

from __future__ import annotations

import json
from typing import Any

from xenvirtio.lab.scenarios.registry import Scenario
from xenvirtio.lab.scenarios.stage import Stage
from xenvirtio.lab.toolstack import GuestConfig, MemoryMode


def run(stage: Stage) -> dict[str, Any]:
    guest = stage.toolstack.create(GuestConfig("patient"))
    report = json.loads(stage.dom0.run(f"xenvirtio doctor --guest {guest.name} --format json", 180).output)
    missing = [check["name"] for check in report["checks"] if check["status"] == "missing"]
    assert report["ok"], f"doctor misses {', '.join(missing)}"
    status = {check["name"]: check["status"] for check in report["checks"]}
    for name in ("xen", "privcmd", "evtchn", "gntdev", "xenstore", "ioreq", "engine"):
        assert status[name] == "ok", f"{name} is {status[name]}"

    # The probe took an IOREQ server of the guest and gave it back: the guest is none the worse.
    guest.run("true")
    guest.destroy()

    nobody = stage.dom0.run("xenvirtio doctor --guest no-such-guest --format json", 180, check=False)
    assert nobody.status == 1, f"doctor ended with {nobody.status} for a guest that does not exist"
    return {"checks": status}


SCENARIO = Scenario("doctor", "doctor finds everything in dom0 and probes a guest", run, modes=(MemoryMode.FOREIGN,))
