"""Argo between dom0 and a guest, both in Python: round trips, a full ring, kills, and metadata without XenStore."""

from __future__ import annotations

import json
import time
from typing import Any

from xenvirtio.lab.artifacts.guest_python import build_guest_python
from xenvirtio.lab.dom0 import BackgroundProgram, Dom0
from xenvirtio.lab.options import MachineOptions
from xenvirtio.lab.scenarios.machine_stage import MachineStage
from xenvirtio.lab.scenarios.registry import MachineScenario
from xenvirtio.lab.toolstack import Guest, GuestConfig

RAMDISK = "/srv/lab/guest-python.cpio.gz"
PORT = "0x100"
MESSAGES = 60
START_S = 60.0
"""How long a Python program may take to say that it has begun, on emulated processors."""

# In the guest: messages of many lengths, together more than twice a ring, so that some wrap.
WORDS = "' '.join(format(i, '04d') * (i * 97 % 900 + 1) for i in range(60))"


def run(stage: MachineStage) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    with stage.boot(MachineOptions(xen_arguments="argo=1")) as machine:
        dom0 = machine.dom0()
        dom0.copy_in(build_guest_python(), RAMDISK)
        guest = stage.with_toolstack(machine).toolstack.create(
            GuestConfig(
                "argo",
                memory_mib=384,
                ramdisk=RAMDISK,
                arguments="console=hvc0 rdinit=/init xen_privcmd.unrestricted=1",
            )
        )
        facts["ping"] = _ping_both_ways(dom0, guest)
        facts["full ring"] = _fill(dom0, guest)
        _kill(dom0, guest)
        facts["metadata"] = _metadata(dom0, guest)
    return facts


def _listen(dom0: Dom0, guest: Guest, name: str, options: str = "") -> BackgroundProgram:
    program = dom0.spawn(f"xenvirtio argo listen --port {PORT} --from {guest.domid} {options}", f"/run/lab/{name}.log")
    _wait_says(program, "listening on port")
    return program


def _wait_says(program: BackgroundProgram, what: str) -> None:
    deadline = time.monotonic() + START_S
    while what not in program.output():
        assert program.is_running(), program.output()
        assert time.monotonic() < deadline, program.output()
        time.sleep(0.2)


def _listen_in_guest(guest: Guest, options: str) -> None:
    listen = f"xenvirtio argo listen --port {PORT} --from 0 {options}"
    guest.run(f"{listen} >/tmp/listen.log 2>&1 & echo $! >/tmp/listen.pid")
    guest.run("until grep -q listening /tmp/listen.log; do sleep 0.2; done", START_S)


def _ping_both_ways(dom0: Dom0, guest: Guest) -> dict[str, Any]:
    facts = {}
    ping = "xenvirtio argo ping {}:{} --count 30 --interval 0 --format json --size {}"
    listener = _listen(dom0, guest, "echo", "--echo")
    for size in (16, 16384):
        facts[f"guest to dom0, {size} bytes"] = json.loads(guest.run(ping.format(0, PORT, size)).output)
    listener.signal("TERM")
    assert listener.wait(START_S) == 0, listener.output()
    _listen_in_guest(guest, "--echo")
    facts["dom0 to guest, 16 bytes"] = json.loads(dom0.run(ping.format(guest.domid, PORT, 16)).output)
    refused = dom0.run(f"xenvirtio argo send {guest.domid}:0x999 x", check=False)
    assert refused.status == 1
    assert "nobody there listens" in refused.output, refused
    guest.run("kill $(cat /tmp/listen.pid); while kill -0 $(cat /tmp/listen.pid) 2>/dev/null; do sleep 0.1; done")
    return facts


def _fill(dom0: Dom0, guest: Guest) -> dict[str, Any]:
    """A listener that is stopped while the guest sends more than its ring takes; then it goes on."""
    listener = _listen(dom0, guest, "lines", f"-n {MESSAGES} --format json")
    listener.signal("STOP")
    send = f'xenvirtio argo send 0:{PORT} --timeout 60 $(python3 -c "print({WORDS})")'
    guest.run(f"({send}; echo sent $?) >/tmp/send.log 2>&1 &")
    time.sleep(5)  # on purpose: long enough to fill the ring, and to be seen waiting
    assert guest.run("cat /tmp/send.log").output.strip() == "", "the sender did not wait for a full ring"
    listener.signal("CONT")
    assert listener.wait(START_S) == 0, listener.output()
    guest.run("until grep -q 'sent 0' /tmp/send.log; do sleep 0.2; done", START_S)
    rows = [json.loads(line) for line in listener.output().splitlines() if line.startswith("{")]
    expected = [format(i, "04d") * (i * 97 % 900 + 1) for i in range(MESSAGES)]
    assert [row["text"] for row in rows] == expected, "messages were lost, changed or out of order"
    assert {row["domid"] for row in rows} == {guest.domid}
    return {"messages": len(rows), "bytes": sum(map(len, expected)), "ring_bytes": 65472}


def _kill(dom0: Dom0, guest: Guest) -> None:
    """A ring whose process is killed is unregistered by its keeper, on both sides: the port is free again."""
    for number in range(2):
        listener = _listen(dom0, guest, f"killed{number}", "--echo")
        listener.signal("KILL")
        assert listener.wait(START_S) == -9
        _wait_port_free(dom0, guest)
    _listen_in_guest(guest, "")
    guest.run("kill -9 $(cat /tmp/listen.pid); sleep 1")
    _listen_in_guest(guest, "")
    guest.run("kill $(cat /tmp/listen.pid)")


def _wait_port_free(dom0: Dom0, guest: Guest) -> None:
    deadline = time.monotonic() + START_S
    while True:
        answer = guest.run(f"xenvirtio argo send 0:{PORT} x", check=False)
        if "nobody there listens" in answer.output:
            return
        assert time.monotonic() < deadline, answer
        time.sleep(0.2)


def _metadata(dom0: Dom0, guest: Guest) -> dict[str, Any]:
    registry = dom0.spawn(f"xenvirtio metadata serve --from {guest.domid}", "/run/lab/registry.log")
    _wait_says(registry, "registry of domain 0")
    keep = "xenvirtio metadata register root --type block --via argo --keep base=0x2000000 irq=33"
    guest.run(f"{keep} >/tmp/keep.log 2>&1 &")
    find = "xenvirtio metadata find --via argo --wait --format json --timeout 60"
    record = {
        "domid": guest.domid,
        "name": "root",
        "type": "block",
        "fields": {"base": "0x2000000", "irq": "33"},
    }
    assert json.loads(dom0.run(f"{find} --type block").output) == [record]
    dom0.run("xenvirtio metadata register clocks --type scmi --via argo agents=4")
    (found,) = json.loads(guest.run(f"{find} --type scmi").output)
    assert (found["domid"], found["fields"]) == (0, {"agents": "4"}), found

    registry.signal("KILL")
    registry.wait(START_S)
    successor = dom0.spawn(f"xenvirtio metadata serve --from {guest.domid}", "/run/lab/registry2.log")
    _wait_says(successor, "registry of domain 0")
    killed_s = time.monotonic()
    assert json.loads(dom0.run(f"{find} --type block").output) == [record], "not registered again after the restart"
    again_s = time.monotonic() - killed_s

    guest.destroy()
    destroyed_s = time.monotonic()
    while json.loads(dom0.run("xenvirtio metadata find --via argo --format json", check=False).output):
        assert time.monotonic() < destroyed_s + START_S, "the record of a domain that has ended is still there"
    successor.signal("TERM")
    assert successor.wait(START_S) == 0, successor.output()
    return {
        "registered again after s": round(again_s, 1),
        "forgotten after s": round(time.monotonic() - destroyed_s, 1),
    }


SCENARIO = MachineScenario(
    "argo", "Argo and metadata over it between dom0 and a guest: full rings, kills, restarts", run
)
