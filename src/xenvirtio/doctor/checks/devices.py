"""The nodes below /dev/xen: there, and to be opened."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from xenvirtio.channels.xenbus_device import KernelStore
from xenvirtio.doctor.answers import Answers, Step
from xenvirtio.doctor.checks.hypervisor import NOT_ON_XEN
from xenvirtio.doctor.finding import Finding, Status, ok, skipped
from xenvirtio.doctor.machine import Machine


@dataclass(frozen=True, slots=True)
class NodeKind:
    """A node, what is lost without it, and what brings it."""

    name: str
    meaning: str
    option: str
    module: str | None = None
    is_needed: Callable[[Machine], bool] = lambda _: True


def _has_no_socket(machine: Machine) -> bool:
    return not any(machine.path(path).exists() for path in machine.xenstore_sockets)


NODES = (
    NodeKind(
        "privcmd",
        "without it there are no IOREQ servers (the guest's register accesses) and no foreign mapping",
        "CONFIG_XEN_PRIVCMD",
        "xen-privcmd",
    ),
    NodeKind("evtchn", "without it no guest can be heard", "CONFIG_XEN_DEV_EVTCHN", "xen-evtchn"),
    NodeKind("gntdev", "without it guests with grant_usage=1 cannot be served", "CONFIG_XEN_GNTDEV", "xen-gntdev"),
    NodeKind(
        "gntalloc",
        "only a frontend in user space would need it",
        "CONFIG_XEN_GRANT_DEV_ALLOC",
        "xen-gntalloc",
        lambda _: False,
    ),
    NodeKind("xenbus", "without it a domU cannot reach XenStore", "CONFIG_XEN", None, _has_no_socket),
    NodeKind("xenbus_backend", "only xenstored itself uses it", "CONFIG_XEN_BACKEND", None, lambda _: False),
)


def check_node(kind: NodeKind, machine: Machine) -> Finding:
    if not machine.is_on_xen:
        return skipped(kind.name, NOT_ON_XEN)
    path = f"/dev/xen/{kind.name}"
    if not machine.path(path).exists():
        return _absent(kind, machine, path)
    if kind.name == "xenbus_backend":
        return ok(kind.name, f"{path} is there; not opened")
    if not machine.may_open_devices:
        return _dangerous(kind, machine, path)
    answers = machine.privcmd if kind.name == "privcmd" else machine.nodes
    step = answers.get(kind.name)
    if step is None:
        return _silent(kind, machine, path, answers)
    return ok(kind.name, f"{path} opens") if step.worked else _refused(kind, machine, path, step)


NODE_CHECKS: tuple[Callable[[Machine], Finding], ...] = tuple(partial(check_node, kind) for kind in NODES)


def _judge(kind: NodeKind, machine: Machine, found: str, remedy: str, meaning: str = "") -> Finding:
    status = Status.MISSING if kind.is_needed(machine) else Status.SKIPPED
    return Finding(kind.name, status, found, meaning or kind.meaning, remedy)


def _absent(kind: NodeKind, machine: Machine, path: str) -> Finding:
    options = machine.kernel_options
    value = None if options is None else options.get(kind.option, "n")
    if not machine.path("/dev/xen").exists() and value == "y":
        remedy = "mount devtmpfs on /dev: the kernel makes the nodes there"
    elif value == "n":
        remedy = f"this kernel was built without {kind.option}: build it with {kind.option}=y or =m"
    elif kind.module is not None and value != "y":
        remedy = f"modprobe {kind.module}" + (f" (the kernel needs {kind.option})" if value is None else "")
    else:
        remedy = f"a kernel with {kind.option}, and devtmpfs on /dev"
    return _judge(kind, machine, f"{path} does not exist", remedy)


def _refused(kind: NodeKind, machine: Machine, path: str, step: Step) -> Finding:
    remedies = {
        errno.EACCES: "run as root: Xen's device nodes belong to root",
        errno.EPERM: "run as root and outside of containers that forbid devices",
        errno.ENODEV: "the kernel does not run on Xen; the node is a leftover: look at `ls -l /dev/xen`",
        errno.ENXIO: f"the node has no driver: modprobe {kind.module}" if kind.module else "boot a Xen-aware kernel",
    }
    remedy = remedies.get(step.error, "look at the kernel's log (dmesg)")
    return _judge(kind, machine, f"{path} does not open: {step.reason}", remedy)


def _dangerous(kind: NodeKind, machine: Machine, path: str) -> Finding:
    if kind.name not in ("privcmd", "xenbus"):
        return skipped(kind.name, f"{path} is there; not opened while XenStore is away")
    late = machine.kernel_store is KernelStore.LATE
    return _judge(
        kind,
        machine,
        f"{path} is there; not opened, since XenStore is {'not there yet' if late else 'not there'}",
        "start XenStore for this domain (in dom0: xenstored, then init-dom0less), then try again"
        if late
        else "give this domain XenStore (dom0less: not `no-xenstore`), or serve from dom0",
        "opening privcmd now would block for ever and take every misc device of this domain with it; writing to xenbus"
        " now would kill XenStore for this domain until it is rebooted",
    )


def _silent(kind: NodeKind, machine: Machine, path: str, answers: Answers) -> Finding:
    if answers.complaint:
        return _judge(kind, machine, f"{path}: the probe failed: {answers.complaint}", "please report this", " ")
    if kind.name == "privcmd" and machine.nodes.hung:
        return _judge(kind, machine, f"{path}: not tried, as the other nodes hang", "see below")
    return _judge(
        kind,
        machine,
        f"{path}: open hangs",
        "find the process that blocks in privcmd (ps axo pid,stat,wchan:20,args) and kill it; then see why XenStore is"
        " not there. A domU with the kernel parameter xen_privcmd.unrestricted=1 does not wait",
        "some process opened privcmd before XenStore was there; it sleeps holding a lock that every misc device needs",
    )
