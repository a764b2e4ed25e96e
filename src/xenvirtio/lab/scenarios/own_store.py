"""xl over our XenStore: three guests come, go and reboot while the store is killed again and again; nothing is lost.

What looks is not ours: Debian's xenstore-* and xl in dom0, libxl's own transactions, a shell in the guest that speaks
to its kernel's /dev/xen/xenbus with printf and dd, and the guests' kernel logs. dom0's programs go through their
kernel's ring (XENSTORED_PATH=/dev/xen/xenbus); what a client of the socket sees of a kill is in the facts.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from xenvirtio.lab.dom0 import Dom0, Result
from xenvirtio.lab.options import MachineOptions, XenStoreChoice
from xenvirtio.lab.scenarios.kernel_log import KernelLog
from xenvirtio.lab.scenarios.machine_stage import MachineStage
from xenvirtio.lab.scenarios.registry import MachineScenario
from xenvirtio.lab.toolstack import Guest, GuestConfig, Toolstack

CYCLES = int(os.environ.get("XENVIRTIO_LAB_CYCLES", "20"))
"""Each takes half a minute or more; five are the fewest with a reboot among them."""
KILL_WITHIN_S = 5.0
"""About what xl takes to destroy a guest and to create one."""
PID_FILE = "/run/xenstored.pid"
STATE = "/run/lab/store.state"
STORE_LOG = "/run/lab/store.log"
SOCKET = "/run/xenstored/socket"
DEVICE = "/dev/xen/xenbus"

SUPERVISE = f"""\
while [ ! -e /run/lab/store.stop ]; do
    xenvirtio store serve --xen --state {STATE} --pid-file {PID_FILE} >>{STORE_LOG} 2>&1
    echo "ended with $?" >>{STORE_LOG}
done
"""

PAIRS = f"""\
import sys, time
from xenvirtio.xenstore.client import XenStoreClient
client = XenStoreClient.at("{DEVICE}", timeout_s=120)
number = 0
while True:
    number += 1
    def both(transaction):
        transaction.write("/local/lab/pair/a", number)
        transaction.write("/local/lab/pair/b", number)
    client.transact(both)
    print(number, flush=True)
"""

GUEST_LOOP = r"""
exec 3<>/dev/xen/xenbus
ask() {
    length=$(printf "$2" | wc -c)
    printf "\\$(printf %03o $1)\0\0\0\007\0\0\0\0\0\0\0\\$(printf %03o $length)\0\0\0$2" >&3
    set -- $(dd bs=16 count=1 <&3 2>/dev/null | od -An -tu4)
    answer="$1 $2 $(dd bs=$4 count=1 <&3 2>/dev/null | tr -d '\0')"
}
n=0
while :; do
    n=$((n + 1))
    ask 11 "data/n\0v$n"
    [ "$answer" = "11 7 OK" ] || { echo "write $n: $answer" >/tmp/bad; exit 1; }
    ask 2 'data/n\0'
    [ "$answer" = "2 7 v$n" ] || { echo "read $n: $answer" >/tmp/bad; exit 1; }
    echo $n >/tmp/n
done
"""


class ThroughKernel(Dom0):
    """dom0 whose programs reach XenStore through its kernel, as they should where the store may be restarted."""

    def run(self, command: str, timeout_s: float = 120, *, check: bool = True, stdin: str = "") -> Result:
        return super().run(f"export XENSTORED_PATH={DEVICE}; {command}", timeout_s, check=check, stdin=stdin)


class Killer:
    """Kills the store in the middle of what else goes on."""

    def __init__(self, dom0: Dom0) -> None:
        self._dom0 = dom0
        self._chance = random.Random(0)
        self.kills = 0

    @contextmanager
    def kill_meanwhile(self) -> Iterator[None]:
        """Kill it once, some seconds into the block; at the end of the block its successor serves."""
        errors: list[BaseException] = []
        delay_s = self._chance.uniform(0, KILL_WITHIN_S)

        def act() -> None:
            try:
                time.sleep(delay_s)
                self._kill()
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=act, daemon=True)
        thread.start()
        yield
        thread.join()
        if errors:
            raise errors[0]

    def _kill(self) -> None:
        pid = self._dom0.run(f"cat {PID_FILE}").output.strip()
        self._dom0.run(f"kill -9 {pid}")
        self.kills += 1
        deadline = time.monotonic() + 120
        while self._dom0.run(f"cat {PID_FILE}", check=False).output.strip() in ("", pid):
            assert time.monotonic() < deadline, "no successor of the killed store"
            time.sleep(0.1)


def run(stage: MachineStage) -> dict[str, Any]:
    with stage.boot(MachineOptions(xenstore=XenStoreChoice.OURS)) as machine:
        dom0 = machine.dom0()
        assert dom0.run(
            "ls /proc/*/comm | xargs cat | sort -u | grep -x -e xenstored -e oxenstored", check=False
        ).status
        over_socket(dom0)
        on_socket = supervise(dom0)
        return under_kills(dom0, on_socket)


def over_socket(dom0: Dom0) -> None:
    """A plain installation: everything over the socket, nothing killed. init has run xen-init-dom0 so."""
    assert dom0.run("xenstore-read /local/domain/0/name").output == "Domain-0\n"
    dom0.run("xenstore-write /local/lab/a one /local/lab/b two && xenstore-chmod /local/lab/a n0 r1")
    assert dom0.run("xenstore-ls /local/lab").output == 'a = "one"\nb = "two"\n'
    assert "(n0,r1)" in dom0.run("xenstore-ls -p /local/lab").output
    watch = dom0.spawn("xenstore-watch -n 3 /local/lab", "/run/lab/watch.log")
    wait_lines(dom0, "/run/lab/watch.log", 1)
    dom0.run("xenstore-write /local/lab/a three; xenstore-rm /local/lab/b")
    assert watch.wait(30) == 0
    assert watch.output().split() == ["/local/lab", "/local/lab/a", "/local/lab/b"]
    guest = Toolstack(dom0).create(GuestConfig("plain", memory_mib=64))
    guest.destroy()
    Toolstack(dom0).wait_only_dom0()


def supervise(dom0: Dom0) -> dict[str, Any]:
    """Have the store started again whenever it ends, and xenconsoled use the kernel's ring.

    Gives what the first kill means for a client of the socket, here Debian's xenstore-watch.
    """
    dom0.write_file("/run/lab/supervise", SUPERVISE)
    watcher = dom0.spawn("xenstore-watch /local/lab", "/run/lab/socket-watch.log")
    wait_lines(dom0, "/run/lab/socket-watch.log", 1)
    dom0.run("kill -9 $(pgrep -f 'store serve --xe[n]')")
    dom0.spawn("sh /run/lab/supervise", "/run/lab/supervise.log")
    dom0.run(f"until [ -s {PID_FILE} ]; do sleep 0.1; done")
    dom0.run("xenstore-write /local/lab/a four")
    used = [dom0.run(f"cut -d ' ' -f 14 /proc/{watcher.pid}/stat; sleep 1", check=False).output for _ in range(2)]
    seen = {"xenstore-watch ended": watcher.wait(0), "processor ticks": used, "events": watcher.output().split()}
    assert seen["events"] == ["/local/lab"], "a client of the socket has to register again"
    watcher.signal("KILL")
    dom0.run(
        "kill $(cat /run/xenconsoled.pid); while pgrep -x xenconsoled; do sleep 0.1; done; "
        f"XENSTORED_PATH={DEVICE} xenconsoled --log=guest --log-dir=/var/log/xen --pid-file=/run/xenconsoled.pid"
    )
    return seen


def under_kills(dom0: Dom0, on_socket: dict[str, Any]) -> dict[str, Any]:
    kernel = ThroughKernel(dom0.channel)
    tools = Toolstack(kernel)
    before = paths(kernel)
    guests = {name: tools.create(GuestConfig(name, memory_mib=64)) for name in ("steady", "second", "third")}
    steady = guests["steady"]
    kernel_log = KernelLog(steady)
    steady.run(f"cat >/tmp/loop <<'END'\n{GUEST_LOOP}END\nsh /tmp/loop >/dev/null 2>&1 &")
    watch = kernel.spawn(f"env XENSTORED_PATH={DEVICE} xenstore-watch /local/lab/seq", "/run/lab/seq.log")
    wait_lines(kernel, "/run/lab/seq.log", 1)
    dom0.write_file("/run/lab/pairs.py", PAIRS)
    pairs = kernel.spawn("python3 /run/lab/pairs.py", "/run/lab/pairs.log")
    killer = Killer(dom0)
    progress = []
    for cycle in range(CYCLES):
        with killer.kill_meanwhile():
            one_cycle(tools, guests, cycle)
            kernel.run(f"xenstore-write /local/lab/seq/{cycle} {cycle}")
        pairs.signal("STOP")
        pair = kernel.run("xenstore-read /local/lab/pair/a /local/lab/pair/b").output.split()
        pairs.signal("CONT")
        assert pair[0] == pair[1], f"half a transaction: {pair}"
        progress.append(int(steady.run("cat /tmp/n").output))
    assert watch.is_running()
    wait_lines(kernel, "/run/lab/seq.log", CYCLES + 1)
    seen = watch.output().split()
    assert seen == ["/local/lab/seq", *(f"/local/lab/seq/{cycle}" for cycle in range(CYCLES))], seen
    assert steady.run("cat /tmp/bad", check=False).status, steady.run("cat /tmp/bad").output
    assert progress == sorted(set(progress)), f"the guest's own loop stood still: {progress}"
    assert kernel.run(f"xenstore-read /local/domain/{steady.domid}/data/n").status == 0
    kernel_log.check_silent()
    watch.signal("TERM")
    pairs.signal("TERM")
    transactions = len(pairs.output().split())
    for guest in guests.values():
        guest.destroy()
    tools.wait_only_dom0()
    kernel.run("xenstore-rm /local/lab")
    left = paths(kernel) - before
    assert not left, f"nodes of guests that are gone: {sorted(left)[:10]}"
    lines = [line for line in dom0.read_file(STORE_LOG).decode().splitlines() if "WARN" in line or "ERROR" in line]
    unexpected = [line for line in lines if "unfinished record" not in line]
    assert not unexpected, "\n".join(unexpected)
    dom0.run("xenstore-control check")
    return {
        "cycles": CYCLES,
        "kills": killer.kills + 1,
        "guest's own reads and writes": progress[-1],
        "transactions of pairs": transactions,
        "a socket's client": on_socket,
    }


def one_cycle(tools: Toolstack, guests: dict[str, Guest], cycle: int) -> None:
    """Destroy and create, or reboot, one of the two that come and go; every fifth time see it take commands."""
    name = ("second", "third")[cycle % 2]
    if cycle % 5 == 4:
        guests[name] = guests[name].reboot()
        return
    guests[name].destroy()
    tools.wait_gone(guests[name].domid)
    after = cycle + 2
    waits = after % 5 == 4 or after >= CYCLES
    guests[name] = tools.create(GuestConfig(name, memory_mib=64), wait=waits)


def paths(dom0: Dom0) -> set[str]:
    """Every node there is, as Debian's xenstore-ls shows it."""
    return {line.partition(" = ")[0] for line in dom0.run("xenstore-ls -f /").output.splitlines()}


def wait_lines(dom0: Dom0, path: str, count: int, timeout_s: float = 60) -> None:
    """Wait until a file has so many lines."""
    deadline = time.monotonic() + timeout_s
    while len(dom0.read_file(path).splitlines()) < count:
        assert time.monotonic() < deadline, f"{path} has no {count} lines: {dom0.read_file(path)!r}"
        time.sleep(0.1)


SCENARIO = MachineScenario(
    "own-store", "xl, three guests and Debian's tools over our store, killed again and again", run
)
