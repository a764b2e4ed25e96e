"""A disk grows under a running guest, and its file system with it."""

from __future__ import annotations

from typing import Any

from xenvirtio.lab.scenarios.registry import Scenario
from xenvirtio.lab.scenarios.stage import Stage
from xenvirtio.lab.scenarios.tree import check_same, checksums_in_image, parse_checksums
from xenvirtio.lab.toolstack import GuestConfig

BEFORE_MIB, AFTER_MIB, FILE_MIB = 16, 64, 32
SECTORS_PER_MIB = 2048


def run(stage: Stage) -> dict[str, Any]:
    disk = stage.disk("grow", BEFORE_MIB)
    with stage.serve() as backend:
        guest = stage.toolstack.create(GuestConfig("grow", disks=(disk,)))
        guest.run("mkfs.ext4 -q /dev/vda && mount /dev/vda /mnt && mkdir /mnt/tree && cp /bin/busybox /mnt/tree/")
        size = int(guest.run("cat /sys/block/vda/size").output)
        assert size == BEFORE_MIB * SECTORS_PER_MIB, f"the disk has {size} sectors"

        stage.dom0.run(f"truncate -s {AFTER_MIB}M {disk.target}")
        backend.signal("HUP")
        expected = AFTER_MIB * SECTORS_PER_MIB
        guest.run(f"until [ $(cat /sys/block/vda/size) = {expected} ]; do sleep 0.1; done", 60)
        said = [line for line in guest.run("dmesg").output.splitlines() if "new size" in line]
        assert said, "the guest's kernel did not mention the new size"

        # Not while it is mounted: our kernels lack CONFIG_BLK_DEV_WRITE_MOUNTED, which resize2fs needs for that.
        # By -f, since e2fsck does not note when it ran while the guest's clock says 1970.
        guest.run("umount /mnt && e2fsck -fp /dev/vda && resize2fs -f /dev/vda && mount /dev/vda /mnt", 300)
        guest.run(f"dd if=/dev/urandom of=/mnt/tree/large bs=1M count={FILE_MIB} 2>/dev/null && sync", 300)
        written = parse_checksums(guest.run("cd /mnt/tree && find . -type f | xargs sha256sum", 300).output)
        guest.run("umount /mnt && e2fsck -fn /dev/vda", 300)
        guest.shut_down()
    check_same(checksums_in_image(stage.dom0, disk.target), written)
    return {"before_mib": BEFORE_MIB, "after_mib": AFTER_MIB, "kernel_said": said[-1]}


SCENARIO = Scenario("grow", "capacity grown under a running guest, its file system with it", run)
