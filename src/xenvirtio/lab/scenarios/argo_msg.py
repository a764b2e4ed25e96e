"""A disk of dom0 used by a dom0less domain over Argo: messages that Xen copies, memory by grants, no XenStore at all.

Every digest that the domain reports is compared with what busybox's sha256sum finds in dom0's file. The backend is
killed with -9 under verified writes.
"""

from __future__ import annotations

import re
import time
from typing import Any

from xenvirtio.lab.options import DOM0_ARGUMENTS, Dom0Root, MachineOptions
from xenvirtio.lab.scenarios.machine_stage import MachineStage
from xenvirtio.lab.scenarios.registry import MachineScenario
from xenvirtio.static.description_loader import parse_description
from xenvirtio.static.plan import encode_plan
from xenvirtio.static.resolve import resolve

SIZE_MIB = 1
IMAGE = "/run/lab/disk.img"

SYSTEM = f"""
[system]
name = "argo-msg"
xen = "4.20"
platform = "qemu-virt-gicv3"
xen_arguments = "console=dtuart noreboot argo=1"

[dom0]
memory = "768MiB"
vcpus = 2
kernel = "Image"
arguments = "{DOM0_ARGUMENTS} lab.xenstore=none"

[[domain]]
name = "user"
memory = "192MiB"
kernel = "Image"
ramdisk = "guest-python.cpio.gz"
arguments = "console=ttyAMA0 panic=-1 quiet role=user xen_privcmd.unrestricted=1"
files = {{ "/start" = "user.sh" }}

[[device]]
name = "disk0"
type = "block"
frontend = "user"
backend = "dom0"
transport = "msg-argo"
resource = {{ file = "{IMAGE}" }}
"""

USER = f"""\
#!/bin/sh
say() {{ while read -r line; do echo "GUEST: $1 $line"; done; }}
verify() {{
    name=$1; shift
    xenvirtio msg verify disk0 --size {SIZE_MIB}M "$@" >/run/$name.out 2>/run/$name.log || tail -n 3 /run/$name.log
    say $name </run/$name.out
    echo "GUEST: done $name"
}}
xenvirtio msg info disk0 --count 100 2>/run/info.log | cut -c 1-100 | say info
verify plain
until xenvirtio msg read disk0 --offset {SIZE_MIB}M --size 512 2>/dev/null | grep -q next; do sleep 3; done
echo "GUEST: go"
verify killed --block 1024 --seed 3
grep -c 'probing the disk again' /run/killed.log | say probed-again
"""

TIMEOUT_S = 300.0


def run(stage: MachineStage) -> dict[str, Any]:
    system = stage.build_system(SYSTEM, {"user.sh": USER})
    started = time.monotonic()
    facts: dict[str, Any] = {}
    with stage.boot(MachineOptions(root=Dom0Root.LIGHT, system=system)) as machine:
        dom0 = machine.dom0()
        dom0.write_file("/run/lab/plan.toml", encode_plan(resolve(parse_description(SYSTEM)).plan_of("dom0")))
        dom0.run(f"truncate -s $(({SIZE_MIB} * 1048576 + 512)) {IMAGE}")
        serve = f"xenvirtio msg serve disk0 --plan /run/lab/plan.toml --file {IMAGE}"
        backend = dom0.spawn(serve, "/run/lab/serve-1.log")

        def digest() -> str:
            return dom0.run(f"head -c {SIZE_MIB << 20} {IMAGE} | sha256sum").output.split()[0]

        machine.wait_line(1, "GUEST: done plain", TIMEOUT_S)
        facts["plain"] = _check("plain", machine.domain_lines(1), digest())
        dom0.run(f"printf next | dd of={IMAGE} bs=1M seek={SIZE_MIB} conv=notrunc 2>/dev/null")
        machine.wait_line(1, "GUEST: go", TIMEOUT_S)
        sessions = "$(grep -c 'queue 0 started' /run/lab/serve-1.log)"
        before = dom0.run(f"echo {sessions}").output.strip()
        dom0.run(f"until [ {sessions} -gt {before} ]; do sleep 0.2; done; sleep 1", timeout_s=TIMEOUT_S)
        backend.signal("KILL")
        backend = dom0.spawn(serve, "/run/lab/serve-2.log")
        assert machine.wait_line(1, "GUEST: /start ended", TIMEOUT_S) == "GUEST: /start ended with 0"
        lines = machine.domain_lines(1)
        facts["killed"] = _check("killed", lines, digest())
        facts["info"] = [line.removeprefix("GUEST: info ") for line in lines if line.startswith("GUEST: info")]
        (again,) = re.findall(r"GUEST: probed-again (\d+)", "\n".join(lines))
        assert int(again) >= 1, "the backend was killed between requests only"
        facts["seconds"] = round(time.monotonic() - started, 1)
    return facts


def _check(phase: str, lines: list[str], found: str) -> list[str]:
    said = "\n".join(lines)
    (written,) = re.findall(rf"GUEST: {phase} sha256 (\w+)", said)
    assert written == found, f"{phase}: written {written}, in the file {found}"
    assert f"GUEST: {phase} {SIZE_MIB << 20} bytes verified" in said
    return re.findall(rf"GUEST: {phase} (write .*|read .*)", said)


SCENARIO = MachineScenario("argo-msg", "a disk over virtio-msg on Argo, memory by grants; the backend killed", run)
