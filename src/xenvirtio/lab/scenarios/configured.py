"""A guest with virtio=[...] entries: which image stands behind each comes from backends.toml."""

from __future__ import annotations

from typing import Any

from xenvirtio.lab.load import run_load
from xenvirtio.lab.scenarios.registry import Scenario
from xenvirtio.lab.scenarios.stage import Stage
from xenvirtio.lab.scenarios.tree import check_disk, check_same, checksums_in_image, write_tree
from xenvirtio.lab.toolstack import GuestConfig

DEVICES = """
[[device]]
guest = "conf*"
type = "block"
devid = 0
resource = {{ file = "{folder}/{{guest}}-0.img" }}
serial = "first"
queues = 2

[[device]]
guest = "conf*"
type = "block"
devid = 1
resource = {{ file = "{folder}/{{guest}}-1.img", read_only = true }}
serial = "second"
"""


def run(stage: Stage) -> dict[str, Any]:
    first, second = stage.disk("configured-0", 96), stage.disk("configured-1", 8)
    folder = first.target.rpartition("/")[0]
    stage.dom0.run(f"dd if=/dev/urandom of={second.target} bs=1M count=8 2>/dev/null")
    line = f"type=virtio,device2, transport=mmio, grant_usage={stage.mode.value}"
    with stage.serve(DEVICES.format(folder=folder)):
        guest = stage.toolstack.create(GuestConfig("configured", vcpus=2, virtio=(line, line)))
        named = guest.run("for d in /sys/block/vd*; do echo $(cat $d/serial) ${d##*/}; done").output.split("\n")
        device = {serial: f"/dev/{name}" for serial, name in (entry.split() for entry in named if entry)}
        assert set(device) == {"first", "second"}, f"the guest finds these disks: {device}"
        queues = guest.run(f"ls /sys/block/{device['first'][5:]}/mq | wc -l").output.strip()
        assert queues == "2", f"the first disk has {queues} queues"
        check_disk(stage.dom0, guest, second.target, device["second"])
        refused = guest.run(f"dd if=/dev/zero of={device['second']} bs=512 count=1", check=False)
        assert refused.status != 0, "the read-only disk could be written"
        run_load(guest, f"verify {device['first']} -d 8 -t 2")
        written = write_tree(guest, device["first"])
        guest.shut_down()
    check_same(checksums_in_image(stage.dom0, first.target), written)
    return {"files": len(written), "queues": int(queues)}


SCENARIO = Scenario("configured", "virtio=[...] entries whose images backends.toml names, two disks, two queues", run)
