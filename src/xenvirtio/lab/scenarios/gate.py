"""Domains whose kernels have a gate wait, asleep, for disks that come late; one without a gate dies of the same wait.

dom0 has xl, for its view of processor time, and no XenStore but ours.
"""

from __future__ import annotations

import hashlib
import random
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from xenvirtio.lab.dom0 import BackgroundProgram, Dom0
from xenvirtio.lab.machine import Machine
from xenvirtio.lab.options import DOM0_ARGUMENTS, MachineOptions
from xenvirtio.lab.scenarios.machine_stage import MachineStage
from xenvirtio.lab.scenarios.registry import MachineScenario
from xenvirtio.lab.scenarios.stage import DISK_FOLDER

SYSTEM = f"""
[system]
name = "gate"
xen = "4.20"
platform = "qemu-virt-gicv3"
xen_arguments = "console=dtuart noreboot"

[dom0]
memory = "768MiB"
vcpus = 2
kernel = "Image"
arguments = "{DOM0_ARGUMENTS} lab.xenstore=none"

[[domain]]
name = "foreign"
memory = "128MiB"
kernel = "Image"
ramdisk = "guest.cpio.gz"
arguments = "console=ttyAMA0 panic=-1 quiet"
gate = true
files = {{ "/init" = "gated_init" }}

[[domain]]
name = "granting"
memory = "128MiB"
vcpus = 2
kernel = "Image"
ramdisk = "guest.cpio.gz"
arguments = "console=ttyAMA0 panic=-1 quiet"
gate = true
files = {{ "/init" = "gated_init" }}

[[domain]]
name = "open"
memory = "128MiB"
kernel = "Image"
ramdisk = "guest.cpio.gz"
arguments = "console=ttyAMA0 panic=-1 quiet"
files = {{ "/init" = "gated_init" }}

[[device]]
name = "foreign-disk"
type = "block"
frontend = "foreign"
backend = "dom0"
grants = false
resource = {{ file = "{{disks}}/foreign.img" }}

[[device]]
name = "granting-disk"
type = "block"
frontend = "granting"
backend = "dom0"
grants = true
resource = {{ file = "{{disks}}/granting.img" }}

[[device]]
name = "open-disk"
type = "block"
frontend = "open"
backend = "dom0"
grants = false
resource = {{ file = "{{disks}}/foreign.img" }}
"""
FOLDER = "/run/lab"
GATED = {1: "foreign", 2: "granting"}
OPEN = 3
GUEST_INIT = r"""#!/bin/busybox sh
# Reads its disk as dom0 made it, then writes and reads round after round.
export PATH=/sbin:/bin
b=/bin/busybox
$b mount -t proc proc /proc
$b mount -t sysfs sysfs /sys
$b mount -t devtmpfs devtmpfs /dev
$b --install -s /bin 2>/dev/null
dmesg -n 1
echo "GUEST: started"
[ -b /dev/vda ] || { echo "GUEST: no disk"; dmesg | grep -i virtio; }
echo "GUEST: read $(dd if=/dev/vda bs=64k count=16 2>/dev/null | md5sum | cut -c1-32)"
round=0
while true; do
    round=$((round + 1))
    # the second MiB is the guest's; fsync has the backend flush, dropped caches have the text read from it again
    printf '%-512s' "round $round" | dd of=/dev/vda bs=512 seek=2048 conv=fsync 2>/dev/null
    echo 3 >/proc/sys/vm/drop_caches
    text=$(dd if=/dev/vda bs=512 skip=2048 count=1 2>/dev/null)
    [ "${text%% *}" = round ] && echo "GUEST: wrote ${text%"${text##*[0-9]}"}"
    sleep 0.2
done
"""
MIB = 1 << 20
TIMEOUT_S = 120.0
WATCHED_S = 10.0
ASLEEP_SHARE = 0.4
"""Of a processor, that a sleeping domain may use beside a busy host. One that yields takes whatever is idle."""


def run(stage: MachineStage) -> dict[str, Any]:
    text = SYSTEM.replace("{disks}", DISK_FOLDER)
    system = stage.build_system(text, {"gated_init": GUEST_INIT})
    started = time.monotonic()
    with stage.boot(MachineOptions(system=system)) as machine:
        dom0 = machine.dom0()
        contents = {name: random.Random(name).randbytes(MIB) for name in GATED.values()}
        for name, content in contents.items():
            dom0.write_file(f"{DISK_FOLDER}/{name}.img", content + bytes(3 * MIB))
        for name in ("backends.toml", "dom0/plan.toml"):
            dom0.write_file(f"{FOLDER}/{Path(name).name}", (system.folder / name).read_bytes())

        machine.wait_line(OPEN, "Kernel panic", TIMEOUT_S)
        control = _control(dom0, "--no-serve")
        share = _processor_share(dom0)
        assert max(share.values()) < ASLEEP_SHARE, f"share of a processor while waiting: {share}"
        assert not [line for domid in GATED for line in machine.domain_lines(domid)], "kernels started without disks"
        waited_s = time.monotonic() - started

        control.signal("TERM")
        assert control.wait(TIMEOUT_S) == 0, control.output()
        control = _control(dom0, f"--serve {FOLDER}/backends.toml")
        for domid, name in GATED.items():
            line = machine.wait_line(domid, "GUEST: read", TIMEOUT_S)
            assert line == f"GUEST: read {hashlib.md5(contents[name]).hexdigest()}", line
            machine.wait_line(domid, "GUEST: wrote round 3$", TIMEOUT_S)
        killed = _kill_backend(dom0)
        rounds = {domid: _rounds(machine, domid) for domid in GATED}
        for domid, name in GATED.items():
            machine.wait_line(domid, f"GUEST: wrote round {rounds[domid] + 5}$", TIMEOUT_S)
            written = dom0.run(f"dd if={DISK_FOLDER}/{name}.img bs=512 skip=2048 count=1 2>/dev/null").output
            assert re.match(r"round \d+ ", written), f"{name}'s disk has {written!r}"
        assert _backend_pid(dom0) != killed
        control.signal("TERM")
        assert control.wait(TIMEOUT_S) == 0, control.output()
    return {"waited_s": round(waited_s, 1), "share_while_waiting": share}


def _control(dom0: Dom0, arguments: str) -> BackgroundProgram:
    """`xenvirtio control`, once it has introduced the domains."""
    command = f"xenvirtio control --plan {FOLDER}/plan.toml {arguments}"
    control = dom0.spawn(command, f"{FOLDER}/control.log")
    wait = f"until xenstore-exists /local/domain/{max(GATED)}/name 2>/dev/null; do sleep 0.3; done"
    dom0.run(wait, timeout_s=TIMEOUT_S)
    return control


def _processor_share(dom0: Dom0) -> Mapping[str, float]:
    """What part of a processor each gated domain uses, by name."""
    before, at = _processor_times(dom0), time.monotonic()
    time.sleep(WATCHED_S)
    after, took_s = _processor_times(dom0), time.monotonic() - at
    return {name: round((after[name] - before[name]) / took_s, 3) for name in GATED.values()}


def _processor_times(dom0: Dom0) -> dict[str, float]:
    rows = (line.split() for line in dom0.run("xl list").output.splitlines())
    return {row[0]: float(row[-1]) for row in rows if row and row[0] in GATED.values()}


def _kill_backend(dom0: Dom0) -> int:
    pid = _backend_pid(dom0)
    dom0.run(f"kill -KILL {pid}")
    return pid


def _backend_pid(dom0: Dom0) -> int:
    # the brackets keep the shell that runs pgrep from being found
    (pid,) = dom0.run("pgrep -f '[x]envirtio serve'").output.split()
    return int(pid)


def _rounds(machine: Machine, domid: int) -> int:
    """The last round that the domain has told of."""
    found = re.findall(r"GUEST: wrote round (\d+)", "\n".join(machine.domain_lines(domid)))
    return int(found[-1])


SCENARIO = MachineScenario("gate", "domains with a gate sleep until their disks are served; a killed backend", run)
