"""Is XenStore there, and does it answer."""

from __future__ import annotations

import errno

from xenvirtio.channels.xenbus_device import KernelStore
from xenvirtio.doctor.checks.hypervisor import NOT_ON_XEN
from xenvirtio.doctor.finding import Finding, missing, ok, skipped, warning
from xenvirtio.doctor.machine import Machine

NAME = "xenstore"
MEANING = "serve learns from XenStore which guests and devices there are"


def check_xenstore(machine: Machine) -> Finding:
    if not machine.is_on_xen:
        return skipped(NAME, NOT_ON_XEN)
    answers = machine.xenstore
    if answers.worked("connect"):
        return _answering(machine)
    if answers.complaint:
        return missing(NAME, f"the probe failed: {answers.complaint}", MEANING, "please report this")
    socket = answers.get("socket")
    if socket is not None and not socket.worked:
        return _closed_socket(socket.error, socket.reason)
    if socket is not None:
        return missing(
            NAME,
            "its socket takes connections, but nobody answers",
            MEANING,
            "see why xenstored is stuck (is it stopped? has the disk it logs to room?); do not restart it under running"
            " guests",
        )
    if machine.is_dom0:
        return missing(
            NAME,
            f"no socket ({', '.join(map(str, machine.xenstore_sockets))}), and the kernel's device does not answer",
            f"xenstored does not run in this dom0; {MEANING}",
            "systemctl start xenstored, or /etc/init.d/xencommons start, or by hand: xenstored && xen-init-dom0",
        )
    return _no_kernel_store(machine)


def _answering(machine: Machine) -> Finding:
    answers = machine.xenstore
    way = "its socket" if answers.worked("socket") else "/dev/xen/xenbus"
    domid = answers.value("domid")
    if domid is not None:
        return ok(NAME, f"answers over {way}: this is domain {domid}")
    step = answers.get("domid")
    reason = "no answer" if step is None else step.reason
    if not machine.is_dom0:
        return warning(
            NAME,
            f"answers over {way}, but not to `domid`: {reason}",
            "this domain's nodes are incomplete",
            "recreate the domain with xl, or with init-dom0less",
        )
    return warning(
        NAME,
        f"answers over {way}, but this domain has no `domid` in it: {reason}",
        "dom0 was not introduced; xl refuses to work and guests cannot be created",
        "run xen-init-dom0 (part of xen-utils; systemctl start xen-init-dom0)",
    )


def _closed_socket(error: int, reason: str) -> Finding:
    remedies = {
        errno.ECONNREFUSED: "xenstored has died. It cannot be restarted under running guests unless it saved its state:"
        " shut them down and reboot, or start it when there are none",
        errno.EACCES: "run as root: the socket belongs to root",
        errno.EPERM: "run as root: the socket belongs to root",
    }
    remedy = remedies.get(error, "look whether xenstored runs")
    return missing(NAME, f"its socket is there, but: {reason}", MEANING, remedy)


def _no_kernel_store(machine: Machine) -> Finding:
    match machine.kernel_store:
        case KernelStore.LATE:
            return missing(
                NAME,
                "promised to this domain, not there yet (/proc/interrupts has xenstore_late_init)",
                f"dom0 has not initialised this dom0less domain; {MEANING}. Do not write to /dev/xen/xenbus before:"
                " that kills it for this domain until reboot",
                "run init-dom0less in dom0 (on Xen 4.20 it fails for domains with two or more vCPUs)",
            )
        case KernelStore.READY:
            return missing(
                NAME,
                "the kernel is connected, but nobody answers",
                f"xenstored has died or is stuck; {MEANING}",
                "look at xenstored in dom0; as root, at /dev/xen/xenbus here",
            )
        case _:
            return missing(
                NAME,
                "this domain has none (no xenbus in /proc/interrupts)",
                MEANING,
                'create the domain with xl, or, dom0less, with xen,enhanced = "enabled" (not "no-xenstore")',
            )
