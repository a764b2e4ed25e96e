"""What Xen itself says is held: event channels, mapped grants, IOREQ servers, dying domains. Asked through dom0."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass

from xenvirtio.errors import ResourceError
from xenvirtio.ids import DomId
from xenvirtio.lab.dom0 import Dom0

SERVERS_PER_DOMAIN = 8
"""MAX_NR_IOREQ_SERVERS (xen/include/xen/sched.h)."""

INTERDOMAIN = "3"
"""ECS_INTERDOMAIN (xen/include/xen/sched.h), printed as s=3."""

_COUNT_FREE_SERVERS = """\
from xenvirtio.errors import HypervisorError
from xenvirtio.xen.linux.host import LinuxHypervisor
model = LinuxHypervisor().open_device_model({domid})
made = []
try:
    while len(made) < 64:
        made.append(model.create_ioreq_server())
except HypervisorError as error:
    assert error.errno == 28, error
for server in made:
    model.destroy_ioreq_server(server)
print(len(made))
"""


@dataclass(frozen=True, slots=True)
class HypervisorView:
    """Dom0's event channels to other domains, and grants of guests that are mapped, as Xen's debug keys print them."""

    channels: int
    grants: int


def look(dom0: Dom0) -> HypervisorView:
    """Ask Xen now."""
    dom0.run("xl debug-keys e && xl debug-keys g")
    text = dom0.run("xl dmesg").output
    return HypervisorView(count_channels(text), count_grants(text))


def wait_same(dom0: Dom0, before: HypervisorView, timeout_s: float = 60) -> None:
    """Wait until Xen holds as much as before.

    Raises:
        AssertionError: it still holds more.
    """
    deadline = time.monotonic() + timeout_s
    while (now := look(dom0)) != before:
        assert time.monotonic() < deadline, f"Xen holds {now}, it was {before}"
        time.sleep(0.2)


def free_servers(dom0: Dom0, domid: DomId) -> int:
    """How many IOREQ servers the domain can still get; they are created and destroyed again, never enabled."""
    dom0.write_file("/run/lab/free_servers.py", _COUNT_FREE_SERVERS.format(domid=domid))
    return int(dom0.run("python3 /run/lab/free_servers.py").output)


def used_servers(dom0: Dom0, domid: DomId) -> int:
    """How many IOREQ servers the domain has."""
    return SERVERS_PER_DOMAIN - free_servers(dom0, domid)


def count_channels(xl_dmesg: str) -> int:
    """Interdomain channels of dom0 to a guest in the last output of debug key `e`."""
    _, found, last = xl_dmesg.rpartition("'e' pressed -> dumping event-channel info")
    if not found:
        raise ResourceError("xl dmesg has no output of debug key e")
    section = last.partition("information for domain 0:")[2]
    count = 0
    for line in section.splitlines():
        if "Event channel information for domain" in line or "gnttab_usage_print_all [" in line:
            break
        match = re.search(r"s=(\d+) n=\d+ x=\d+ d=(\d+)", line)
        if match and match[1] == INTERDOMAIN and match[2] != "0":
            count += 1
    return count


def count_grants(xl_dmesg: str) -> int:
    """Grants that are in use in the last output of debug key `g`, of all domains but dom0's own."""
    _, found, last = xl_dmesg.rpartition("gnttab_usage_print_all [ key 'g' pressed")
    if not found:
        raise ResourceError("xl dmesg has no output of debug key g")
    section = last.partition("gnttab_usage_print_all ] done")[0]
    return len(re.findall(r"^(?:\(XEN\) )?(?:\[.*?\] )?\s*\[0x[0-9a-f]+\]", section, re.MULTILINE))
