"""dom0 is Linux and our package, nothing else; two dom0less domains get disks, then XenStore, and live through kills.

First only `serve --plan` runs: no XenStore anywhere, the gates open, the guests mount their disks. Then `control` takes
over: XenStore appears late, the guests register devices and find each other's, the disks go on. Backend, store and
control are killed under that, and one guest ends.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
import time
from typing import Any

from xenvirtio.lab.dom0 import BackgroundProgram, Dom0
from xenvirtio.lab.machine import Machine
from xenvirtio.lab.options import DOM0_ARGUMENTS, Dom0Root, MachineOptions
from xenvirtio.lab.scenarios.machine_stage import MachineStage
from xenvirtio.lab.scenarios.registry import MachineScenario

FOLDER = "/run/lab"
GUESTS = {1: "foreign", 2: "granting"}
PROCESSORS = {1: 1, 2: 2}


def _domain(domid: int) -> str:
    name = GUESTS[domid]
    return f"""
[[domain]]
name = "{name}"
memory = "192MiB"
vcpus = {PROCESSORS[domid]}
kernel = "Image"
ramdisk = "guest-python.cpio.gz"
arguments = "console=ttyAMA0 panic=-1 quiet role={name}"
gate = true
files = {{ "/start" = "start" }}

[[device]]
name = "{name}-disk"
type = "block"
frontend = "{name}"
backend = "dom0"
grants = {str(name == "granting").lower()}
resource = {{ file = "{FOLDER}/{name}.img" }}
"""


SYSTEM = f"""
[system]
name = "light"
xen = "4.20"
platform = "qemu-virt-gicv3"
xen_arguments = "console=dtuart noreboot"

[dom0]
memory = "768MiB"
vcpus = 2
kernel = "Image"
arguments = "{DOM0_ARGUMENTS} lab.xenstore=none"
{_domain(1)}{_domain(2)}"""

GUEST = r"""#!/bin/sh
# Mounts the disk, works on it for ever, and meanwhile waits for XenStore, registers a device and looks for the other's.
[ "$ROLE" = foreign ] && { own=1; other=2; theirs=granting; } || { own=2; other=1; theirs=foreign; }
say() { echo "GUEST: $*"; }
mkdir -p /mnt
mount -t ext4 /dev/vda /mnt || { say "no disk"; dmesg | tail -20; exit 1; }
say "found $(md5sum /mnt/from-dom0 | cut -c1-32)"
say "xenstore $(grep -c 'xenstore_late_init$' /proc/interrupts) late, $(grep -c ' xenbus$' /proc/interrupts) ready"
(
    until xenvirtio metadata register "$ROLE-disk" --via xenstore --timeout 600 --type block --peer $other \
        transport=mmio base=0x2000000 irq=33 2>&1; do say "again"; done # each request has 10 s, Python may need more
    say "registered"
    xenvirtio metadata find --via xenstore --timeout 600 --peer $other --name "$theirs-disk" --wait >/tmp/found 2>&1
    say "found with $?: $(tr '\n' ' ' </tmp/found | cut -c1-90)"
    say "is $(xenvirtio store read name 2>&1), cpus $(xenvirtio store ls cpu 2>&1 | tr '\n' ' ')"
    xenvirtio store watch -n 2 data/stop >/tmp/watched 2>&1
    say "told to stop"
    touch /tmp/stop
) &
round=0
while [ ! -e /tmp/stop ]; do
    round=$((round + 1))
    (echo "$ROLE $round"; head -c 100000 /dev/urandom) >/mnt/work.new
    sum=$(md5sum </mnt/work.new)
    sync
    echo 3 >/proc/sys/vm/drop_caches
    [ "$(md5sum </mnt/work.new)" = "$sum" ] || { say "WRONG at $round"; exit 1; }
    mv /mnt/work.new /mnt/work
    echo "$sum" >/mnt/sum
    say "round $round"
    sleep 2
done
umount /mnt && say "unmounted"
poweroff -f
"""

TIMEOUT_S = 300.0
ROUNDS = 4
"""Of verified work in each guest after each kill."""

FORBIDDEN = "xl xenstored xenstore-ls xen-init-dom0 libxl libxenctrl libxenstore init-dom0less"


def run(stage: MachineStage) -> dict[str, Any]:
    system = stage.build_system(SYSTEM, {"start": GUEST})
    times: dict[str, float] = {}
    with stage.boot(MachineOptions(root=Dom0Root.LIGHT, system=system)) as machine:
        dom0 = machine.dom0()
        _check_root(dom0)
        sums = _make_disks(dom0)
        for name in ("backends.toml", "dom0/plan.toml"):
            dom0.write_file(f"{FOLDER}/{name.rpartition('/')[2]}", (system.folder / name).read_bytes())
        assert not [line for domid in GUESTS for line in machine.domain_lines(domid)], "a kernel passed its gate"

        started = time.monotonic()
        backend = dom0.spawn(f"xenvirtio serve --plan {FOLDER}/plan.toml {FOLDER}/backends.toml", f"{FOLDER}/serve.log")
        for domid, name in GUESTS.items():
            line = machine.wait_line(domid, "GUEST: found [0-9a-f]{32}", TIMEOUT_S)
            assert line == f"GUEST: found {sums[name]}", line
            assert machine.wait_line(domid, "GUEST: xenstore", TIMEOUT_S) == "GUEST: xenstore 1 late, 0 ready"
            machine.wait_line(domid, "GUEST: round 2$", TIMEOUT_S)
        times["disks_s"] = time.monotonic() - started
        assert not [line for domid in GUESTS for line in machine.domain_lines(domid) if "registered" in line]
        backend.signal("TERM")
        assert backend.wait(TIMEOUT_S) == 0, backend.output()

        started = time.monotonic()
        control = _start_control(dom0)
        for domid, name in GUESTS.items():
            other = GUESTS[3 - domid]
            machine.wait_line(domid, "GUEST: registered", TIMEOUT_S)
            line = machine.wait_line(domid, "GUEST: found with", TIMEOUT_S)
            assert re.match(rf"GUEST: found with 0: .*{other}-disk", line), line
            cpus = "".join(f"{index} " for index in range(PROCESSORS[domid]))
            assert machine.wait_line(domid, "GUEST: is", TIMEOUT_S) == f"GUEST: is {name}, cpus {cpus}"
        times["metadata_s"] = time.monotonic() - started
        found = dom0.run("xenvirtio metadata find --via xenstore --type block").output
        assert all(f"{name}-disk" in found for name in GUESTS.values()), found
        _progress(machine)

        for child in ("backend", "store"):
            dom0.run(f"kill -KILL {_child(control, child)}")
            _progress(machine)
            assert dom0.run("xenvirtio store read /local/domain/2/name --wait 60").output.strip() == "granting"
        control.signal("KILL")
        control = _start_control(dom0)
        _progress(machine)
        assert "domain introduced" not in control.output(), "a successor introduced a domain again"

        dom0.run("xenvirtio store write /local/domain/1/data/stop now")
        machine.wait_line(1, "GUEST: unmounted", TIMEOUT_S)
        dom0.run(_until("! xenvirtio store exists /local/domain/1"), timeout_s=2 * TIMEOUT_S)
        assert "domain 1 stopped (poweroff); destroyed" in control.output()
        _progress(machine, (2,))
        control.signal("TERM")
        assert control.wait(TIMEOUT_S) == 0, control.output()
        _check_disks(dom0)
    return {key: round(value, 1) for key, value in times.items()}


def _check_root(dom0: Dom0) -> None:
    """Nothing of Xen's tools is there."""
    pattern = " -o ".join(f"-name '{name}*'" for name in FORBIDDEN.split())
    found = dom0.run(f"find / -xdev \\( {pattern} \\) -not -type d -not -path '/opt/xenvirtio/*'").output
    assert not found.split(), f"dom0 is not light: {found}"


def _make_disks(dom0: Dom0) -> dict[str, str]:
    """A file system for each guest with a file in it; the MD5 of the file by guest."""
    sums = {}
    for name in GUESTS.values():
        content = random.Random(name).randbytes(1 << 20)
        sums[name] = hashlib.md5(content).hexdigest()
        dom0.write_file(f"{FOLDER}/{name}/from-dom0", content)
        dom0.run(f"/usr/sbin/mke2fs -q -t ext4 -d {FOLDER}/{name} {FOLDER}/{name}.img 24M")
    return sums


def _start_control(dom0: Dom0) -> BackgroundProgram:
    arguments = f"--plan {FOLDER}/plan.toml --serve {FOLDER}/backends.toml --log-format json"
    return dom0.spawn(f"xenvirtio control {arguments}", f"{FOLDER}/control-{time.monotonic_ns()}.log")


def _child(control: BackgroundProgram, name: str) -> int:
    """The process id of a child of control, as it was started last."""
    lines = [json.loads(line) for line in control.output().splitlines() if line.startswith("{")]
    return int([line["pid"] for line in lines if line["message"] == f"{name} started"][-1])


def _rounds(machine: Machine, domid: int) -> int:
    found = re.findall(r"GUEST: round (\d+)", "\n".join(machine.domain_lines(domid)))
    return int(found[-1]) if found else 0


def _progress(machine: Machine, domids: tuple[int, ...] = tuple(GUESTS)) -> None:
    """Wait until each guest has done more rounds of verified work."""
    wanted = {domid: _rounds(machine, domid) + ROUNDS for domid in domids}
    for domid, number in wanted.items():
        machine.wait_line(domid, f"GUEST: round {number}$", TIMEOUT_S)
    wrong = [line for domid in domids for line in machine.domain_lines(domid) if "WRONG" in line]
    assert not wrong, wrong


def _until(condition: str) -> str:
    return f"n=0; until {condition}; do n=$((n + 1)); [ $n -lt {int(TIMEOUT_S)} ] || exit 1; sleep 0.5; done"


def _check_disks(dom0: Dom0) -> None:
    """What the guests wrote, read by e2fsprogs: the file systems are sound once their journals are replayed."""
    for name in GUESTS.values():
        image = f"{FOLDER}/{name}.img"
        result = dom0.run(f"/usr/sbin/e2fsck -fy {image}", check=False)
        assert result.status in (0, 1), result.output
        dom0.run(f"/usr/sbin/debugfs -R 'dump /work {FOLDER}/{name}.work' {image}")
        head = dom0.run(f"head -n 1 {FOLDER}/{name}.work | head -c 100").output
        assert re.match(rf"{name} \d+$", head.strip()), head


SCENARIO = MachineScenario(
    "dom0-light", "dom0 without Xen's tools: late XenStore, metadata, disks foreign and granted, everything killed", run
)
