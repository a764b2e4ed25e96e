"""Debian's own arm64 kernel, untouched, uses the disk. It has no CONFIG_XEN_VIRTIO, so foreign mode only."""

from __future__ import annotations

from typing import Any

from xenvirtio.lab.scenarios.kernel_log import KernelLog
from xenvirtio.lab.scenarios.registry import Scenario
from xenvirtio.lab.scenarios.stage import Stage
from xenvirtio.lab.scenarios.tree import check_same, checksums_in_image, write_tree
from xenvirtio.lab.toolstack import DEBIAN_KERNEL, GuestConfig, MemoryMode


def run(stage: Stage) -> dict[str, Any]:
    disk = stage.disk("debian", 96)
    with stage.serve():
        guest = stage.toolstack.create(
            GuestConfig(
                "debian",
                memory_mib=256,
                disks=(disk,),
                kernel=DEBIAN_KERNEL["kernel"],
                ramdisk=DEBIAN_KERNEL["ramdisk"],
            )
        )
        release = guest.run("uname -r").output.strip()
        assert "arm64" in release, f"this is no Debian kernel: {release}"
        log = KernelLog(guest)
        written = write_tree(guest)
        log.check_silent()
        guest.shut_down()
    check_same(checksums_in_image(stage.dom0, disk.target), written)
    return {"files": len(written), "kernel": release}


SCENARIO = Scenario(
    "debian-kernel", "the same with Debian's own arm64 kernel", run, modes=(MemoryMode.FOREIGN,)
)
