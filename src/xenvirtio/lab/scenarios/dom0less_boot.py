"""A statically partitioned system from its description: dom0 and two domains, shared memory and channels proved."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import xenvirtio.lab
from xenvirtio.lab.options import DOM0_ARGUMENTS, Dom0Root, MachineOptions
from xenvirtio.lab.scenarios.machine_stage import MachineStage
from xenvirtio.lab.scenarios.registry import MachineScenario

GUEST_ARGUMENTS = "console=ttyAMA0 panic=-1 quiet"

SYSTEM = f"""
[system]
name = "boot"
xen = "4.20"
platform = "qemu-virt-gicv3"
xen_arguments = "console=dtuart noreboot"

[dom0]
memory = "768MiB"
vcpus = 2
kernel = "Image"
arguments = "{DOM0_ARGUMENTS} lab.xenstore=none"

[[domain]]
name = "left"
memory = "160MiB"
kernel = "Image"
ramdisk = "guest-python.cpio.gz"
arguments = "{GUEST_ARGUMENTS} role=left"
files = {{ "/start" = "partner.py" }}

[[domain]]
name = "right"
memory = "160MiB"
vcpus = 2
kernel = "Image"
ramdisk = "guest-python.cpio.gz"
arguments = "{GUEST_ARGUMENTS} role=right"
files = {{ "/start" = "partner.py" }}

[[region]]
id = "hosted"
size = "1MiB"
host = 0xb0000000
guests = {{ left = 0x08000000, right = 0x09000000 }}

[[region]]
id = "heap"
size = "2MiB"
guests = ["left", "right"]

[[region]]
id = "owned"
size = "1MiB"
owner = "left"
guests = ["left", "right"]

[[region]]
id = "dom0left"
size = "1MiB"
guests = ["dom0", "left"]

[[channel]]
name = "pair"
ends = ["left", "right"]

[[channel]]
name = "up"
ends = ["dom0", "left"]
"""

PARTNER = Path(xenvirtio.lab.__file__).parent / "guest_python" / "partner.py"
TIMEOUT_S = 240.0
"""Two guests start Python at once, beside dom0 and whatever else the host does; 15 s on an idle one."""


def run(stage: MachineStage) -> dict[str, Any]:
    partner = PARTNER.read_text()
    system = stage.build_system(SYSTEM, {"partner.py": partner})
    started = time.monotonic()
    with stage.boot(MachineOptions(root=Dom0Root.LIGHT, system=system)) as machine:
        dom0_up_s = time.monotonic() - started
        dom0 = machine.dom0()
        dom0.write_file("/run/lab/partner.py", partner)
        third = dom0.spawn("python3 /run/lab/partner.py", "/run/lab/partner.log")

        for domid, name, processors in ((1, "left", 1), (2, "right", 2)):
            assert machine.wait_line(domid, "GUEST: /start ended", TIMEOUT_S) == "GUEST: /start ended with 0"
            lines = machine.domain_lines(domid)
            assert f"GUEST: {name} is domain {domid}, {processors} processors" in lines, lines
        assert third.wait(TIMEOUT_S) == 0, third.output()

        said = "\n".join([*machine.domain_lines(1), *machine.domain_lines(2), third.output()])
        verified = _VERIFIED.findall(said)
        assert sorted(verified) == sorted(["dom0left", "heap", "hosted", "owned"] * 2), verified
        ended_s = time.monotonic() - started
    (round_trip_us,) = re.findall(r"round trip median (\d+) us", said)
    return {"dom0_up_s": round(dom0_up_s, 1), "ended_s": round(ended_s, 1), "round_trip_us": int(round_trip_us)}


_VERIFIED = re.compile(r"GUEST: (\w+) turn \d verified \d+")

SCENARIO = MachineScenario("dom0less-boot", "dom0 and two domains from a system.toml: shared memory, channels", run)
