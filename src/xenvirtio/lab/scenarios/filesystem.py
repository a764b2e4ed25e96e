"""A guest formats, fills and checks its disk; dom0 finds the same files in the image."""

from __future__ import annotations

from typing import Any

from xenvirtio.lab.scenarios.kernel_log import KernelLog
from xenvirtio.lab.scenarios.registry import Scenario
from xenvirtio.lab.scenarios.stage import Stage
from xenvirtio.lab.scenarios.tree import check_same, checksums_in_image, write_tree
from xenvirtio.lab.toolstack import GuestConfig


def run(stage: Stage) -> dict[str, Any]:
    disk = stage.disk("filesystem", 96)
    with stage.serve():
        guest = stage.toolstack.create(GuestConfig("filesystem", disks=(disk,)))
        log = KernelLog(guest)
        written = write_tree(guest)
        log.check_silent()
        guest.shut_down()
    check_same(checksums_in_image(stage.dom0, disk.target), written)
    return {"files": len(written)}


SCENARIO = Scenario("filesystem", "mkfs.ext4, copy a tree, e2fsck in the guest; the same checksums in dom0", run)
