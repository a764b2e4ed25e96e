"""Two domains and no dom0 at all: a disk over virtio-msg, through static shared memory and a static event channel.

Nothing runs but Xen and two kernels. Every digest that `user` reports is compared with what busybox's sha256sum finds
in the file of `server`. In between either end is killed with -9 under verified writes. At the end both ends map the
region by UIO, after one that differed was refused.
"""

from __future__ import annotations

import re
import time
from typing import Any

from xenvirtio.lab.machine import Machine
from xenvirtio.lab.options import MachineOptions
from xenvirtio.lab.scenarios.machine_stage import MachineStage
from xenvirtio.lab.scenarios.registry import MachineScenario

GUEST_ARGUMENTS = "console=ttyAMA0 panic=-1 quiet"
SIZE_MIB = 1
MARK_OFFSET = SIZE_MIB << 20
"""Behind what is verified lies one sector by which `user` tells `server` how far the story is."""

SYSTEM = f"""
[system]
name = "static-msg"
xen = "4.20"
platform = "qemu-virt-gicv3"
xen_arguments = "console=dtuart noreboot"

[[domain]]
name = "user"
memory = "192MiB"
kernel = "Image"
ramdisk = "guest-python.cpio.gz"
arguments = "{GUEST_ARGUMENTS} role=user"
files = {{ "/start" = "user.sh" }}
view = "uio"

[[domain]]
name = "server"
memory = "192MiB"
kernel = "Image"
ramdisk = "guest-python.cpio.gz"
arguments = "{GUEST_ARGUMENTS} role=server"
files = {{ "/start" = "server.sh" }}
view = "uio"

[[region]]
id = "bus"
size = "2MiB"
guests = ["user", "server"]

[[channel]]
name = "bus"
ends = ["user", "server"]

[[device]]
name = "disk0"
type = "block"
frontend = "user"
backend = "server"
transport = "msg-static"
region = "bus"
channel = "bus"
resource = {{ file = "/disk.img" }}
"""

USER = f"""\
#!/bin/sh
now() {{ cut -d' ' -f1 /proc/uptime; }}
say() {{ while read -r line; do echo "GUEST: $1 $line"; done; }}
mark() {{
    name=$1; shift
    echo "$name" | xenvirtio msg write disk0 --offset {MARK_OFFSET} --log-level error "$@" 2>/dev/null
}}
verify() {{
    name=$1; shift
    xenvirtio msg verify disk0 --size {SIZE_MIB}M "$@" >/run/$name.out 2>/run/$name.log || tail -n 3 /run/$name.log
    say $name </run/$name.out
}}
echo "GUEST: began $(now)"
xenvirtio msg info disk0 --count 200 >/run/info.out 2>/run/info.log || {{ tail -n 3 /run/info.log; exit 1; }}
cut -c 1-100 /run/info.out | say info
echo "GUEST: informed $(now)"
verify plain
mark plain
verify small --block 4096 --seed 2
mark small
verify backend-killed --block 1024 --seed 3
grep -c 'probing the disk again' /run/backend-killed.log | say probed-again
mark backend-killed
xenvirtio msg verify disk0 --size {SIZE_MIB}M --block 1024 --seed 4 >/dev/null 2>/run/killed.log &
until grep -q 'the disk is there' /run/killed.log; do sleep 0.2; done
sleep 1
kill -9 $! && echo "GUEST: killed -9 user"
wait $! 2>/dev/null
verify user-killed --block 4096 --seed 5
mark user-killed
until xenvirtio msg info disk0 --map mem --wait 3 2>&1 | grep -o 'one end maps the region cached' >/run/mixed; do
    sleep 1
done
say mixed </run/mixed
verify uio --map uio --seed 6
mark uio --map uio
"""

SERVER = f"""\
#!/bin/sh
serve() {{ xenvirtio msg serve disk0 --file /disk.img >>/run/serve.log 2>&1 & }}
sessions() {{ grep -c 'queue 0 started' /run/serve.log; }}
wait_mark() {{ until tail -c 512 /disk.img | head -n 1 | grep -qx "$1"; do sleep 0.5; done; }}
digest() {{ echo "GUEST: $1 file $(head -c {MARK_OFFSET} /disk.img | sha256sum | cut -d' ' -f1)"; }}
truncate -s $(({MARK_OFFSET} + 512)) /disk.img
echo "GUEST: began $(cut -d' ' -f1 /proc/uptime)"
serve
until grep -q ready /run/serve.log; do
    kill -0 $! || {{ tail -n 3 /run/serve.log; exit 1; }}
    sleep 0.2
done
echo "GUEST: ready $(cut -d' ' -f1 /proc/uptime)"
wait_mark plain
digest plain
wait_mark small
digest small
for n in 1 2; do
    before=$(sessions)
    until [ $(sessions) -gt $before ]; do sleep 0.2; done
    sleep 1
    kill -9 $! && echo "GUEST: killed -9 server"
    wait $! 2>/dev/null
    serve
done
wait_mark backend-killed
digest backend-killed
wait_mark user-killed
digest user-killed
kill $!
wait $!
echo "GUEST: serve ended with $?"
xenvirtio msg serve disk0 --file /disk.img --map uio >>/run/serve.log 2>&1 &
wait_mark uio
digest uio
kill $!
"""

PHASES = ("plain", "small", "backend-killed", "user-killed", "uio")
TIMEOUT_S = 600.0


def run(stage: MachineStage) -> dict[str, Any]:
    system = stage.build_system(SYSTEM, {"user.sh": USER, "server.sh": SERVER})
    started = time.monotonic()
    with stage.boot(MachineOptions(system=system)) as machine:
        while len(ended := re.findall(r"GUEST: /start ended with (\d+)", _console(machine))) < 2:
            assert time.monotonic() - started < TIMEOUT_S, "a domain has not finished: " + _console(machine)[-2000:]
            assert set(ended) <= {"0"}, _console(machine)[-2000:]
            time.sleep(0.5)
        seconds = time.monotonic() - started
        said = _console(machine)
    facts: dict[str, Any] = {"seconds": round(seconds, 1)}
    for phase in PHASES:
        (written,) = re.findall(rf"GUEST: {phase} sha256 (\w+)", said)
        (found,) = re.findall(rf"GUEST: {phase} file (\w+)", said)
        assert written == found, f"{phase}: written {written}, in the file {found}"
        assert f"GUEST: {phase} {SIZE_MIB << 20} bytes verified" in said
        facts[phase] = re.findall(rf"GUEST: {phase} (write .*|read .*)", said)
    assert len(re.findall("GUEST: killed -9 (user|server)", said)) == 3
    (again,) = re.findall(r"GUEST: probed-again (\d+)", said)
    assert int(again) == 2
    assert "GUEST: serve ended with 0" in said
    assert "GUEST: mixed one end maps the region cached" in said
    facts["probed_again"] = int(again)
    facts["user_space"] = re.findall(r"GUEST: (?:began|informed|ready) [\d.]+", said)
    facts["info"] = re.findall(r"GUEST: info (.*)", said)
    return facts


def _console(machine: Machine) -> str:
    """All that both domains said: without a dom0 Xen's console belongs to the first one, which then has no prefix."""
    return machine.serial_log.read_text(errors="replace") if machine.serial_log.exists() else ""


SCENARIO = MachineScenario("static-msg", "no dom0: a disk over virtio-msg and static memory; either end killed", run)
