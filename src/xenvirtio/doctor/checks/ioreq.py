"""May this domain be a guest's device model: tried for real with a guest, read from Xen's configuration without.

Every refusal has its own cause, and two of them, the kernel's and Xen's, share EPERM. They are told apart by what else
was tried: HYPERCALL and RESTRICT are refused by Linux alone, device-model operations by Xen once Linux lets them pass.

Seen on Xen 4.20 and Linux 6.12, but for what RESTRICT tells in a domU (read in drivers/xen/privcmd.c 6.12), what FLASK
does, and the lines marked [read].
"""

from __future__ import annotations

import errno

from xenvirtio.doctor.answers import Answers
from xenvirtio.doctor.checks.hypervisor import NOT_ON_XEN
from xenvirtio.doctor.finding import Finding, missing, ok, skipped, warning
from xenvirtio.doctor.machine import Machine

NAME = "ioreq"
MEANING = "without an IOREQ server nobody answers the guest's accesses to its virtio registers"
HOW_TO_TRY = "with a guest there (running or paused): xenvirtio doctor --guest NAME_OR_DOMID"

BUILD_XEN = (
    "build Xen with CONFIG_EXPERT=y and CONFIG_IOREQ_SERVER=y (without the first the second is not even offered);"
    " Arm packages of distributions normally lack it"
)
MAKE_TARGET = (
    "in dom0, with backend domain B and guest G still paused: write /local/domain/B/target = G, call"
    " xc_domain_set_target(B, G), unpause B, then G; or serve from dom0"
)
_NO_IOREQ = (errno.EOPNOTSUPP, errno.ENOSYS)
"""EOPNOTSUPP: Xen knows device-model operations but not this one. ENOSYS: it has none at all, as an Arm Xen without
CONFIG_IOREQ_SERVER [read: xen/include/hypercall-defs.c 4.20]."""


def check_ioreq(machine: Machine) -> Finding:
    if not machine.is_on_xen:
        return skipped(NAME, NOT_ON_XEN)
    if machine.guest is None:
        return _by_configuration(machine)
    domid = machine.guest if machine.guest.isdecimal() else machine.xenstore.value("guest")
    if domid is None:
        return _unknown_guest(machine)
    if not machine.may_open_devices:
        return skipped(NAME, "not tried: privcmd must not be opened while XenStore is away")
    if not machine.privcmd.worked("privcmd"):
        return skipped(NAME, "not tried: privcmd does not open")
    answers = machine.probe("ioreq", [str(machine.path("/dev/xen")), domid])
    return diagnose(answers, machine, domid)


def _by_configuration(machine: Machine) -> Finding:
    options = machine.xen_options
    no_target = machine.xenstore.failed("target", errno.ENOENT)
    if not machine.is_dom0 and no_target and machine.privcmd.failed("hypercall", errno.EPERM):
        return _blocked_by_kernel(machine, None)
    if options is None:
        return skipped(NAME, "not known", "whether Xen has IOREQ servers shows only when one is made", HOW_TO_TRY)
    if options.get("CONFIG_IOREQ_SERVER") == "y":
        return ok(NAME, "Xen was built with CONFIG_IOREQ_SERVER; not tried (--guest NAME does)")
    return missing(NAME, "Xen was built without CONFIG_IOREQ_SERVER", MEANING, BUILD_XEN)


def _unknown_guest(machine: Machine) -> Finding:
    step = machine.xenstore.get("guest")
    if step is not None and step.error == errno.ENOENT:
        return missing(NAME, f"no guest is called {machine.guest!r}", "nothing was tried", "see `xl list`")
    reason = "XenStore does not answer" if step is None else f"XenStore says {step.reason}"
    return missing(
        NAME, f"the guest {machine.guest!r} cannot be looked up: {reason}", "nothing was tried", "give its domid"
    )


def diagnose(answers: Answers, machine: Machine, domid: str) -> Finding:
    """Say what the steps of the `ioreq` probe mean."""
    if answers.worked("destroy"):
        return _created(answers, domid)
    if answers.worked("create"):
        return _left_behind(answers, domid)
    if answers.failed("create"):
        return _refused(answers, machine, domid)
    found = "hung" if answers.hung else f"failed: {answers.complaint or 'no answer'}"
    return missing(NAME, f"trying an IOREQ server for domain {domid} {found}", MEANING, "please report this")


def _created(answers: Answers, domid: str) -> Finding:
    if answers.worked("map"):
        vcpus = answers.value("nr_vcpus")
        return ok(NAME, f"domain {domid} ({vcpus} vCPUs): server created, its page mapped, destroyed")
    step = answers.get("map")
    return missing(
        NAME,
        f"domain {domid}: a server can be created, but its page not mapped: {step.reason if step else 'no answer'}",
        MEANING,
        "Linux 4.18 or newer (IOCTL_PRIVCMD_MMAP_RESOURCE); with FLASK, the permission resource_map",
    )


def _left_behind(answers: Answers, domid: str) -> Finding:
    server = answers.value("create")
    step = answers.get("destroy")
    why = "no answer" if step is None else step.reason
    return warning(
        NAME,
        f"domain {domid}: server {server} was created but could not be destroyed: {why}",
        "it was never enabled and does no harm, but takes one of the guest's 8 places",
        "it goes when the guest does",
    )


def _refused(answers: Answers, machine: Machine, domid: str) -> Finding:
    create = answers.steps["create"]
    first = answers.get("nr_vcpus") or create
    if first.error in _NO_IOREQ or create.error in _NO_IOREQ:
        return missing(
            NAME,
            f"Xen has no IOREQ servers: create_ioreq_server gives {create.reason}",
            f"this Xen was built without CONFIG_IOREQ_SERVER; {MEANING}",
            BUILD_XEN,
        )
    if first.worked:
        return _refused_create(answers, machine, domid)
    if first.error == errno.ESRCH:
        return missing(NAME, f"there is no domain {domid}", "nothing was tried", "see `xl list`")
    if first.error == errno.EINVAL:  # [read: xen/arch/x86/hvm/dm.c]
        return missing(
            NAME,
            f"domain {domid} is not a HVM or PVH guest",
            "PV guests have no device model",
            'type = "pvh" in its xl.cfg',
        )
    if first.error == errno.EPERM:
        return _not_permitted(answers, machine, domid)
    return missing(NAME, f"domain {domid}: nr_vcpus gives {first.reason}", MEANING, "please report this")


def _refused_create(answers: Answers, machine: Machine, domid: str) -> Finding:
    create = answers.steps["create"]
    if create.error == errno.ENOSPC:
        return missing(
            NAME,
            f"domain {domid} has its 8 IOREQ servers already",
            "servers of dead backends stay: they belong to the backend's domain, not to its process",
            "recreate the guest (xl destroy, xl create); `xenvirtio serve` takes its own servers over",
        )
    if create.error != errno.EPERM:
        return missing(
            NAME, f"domain {domid}: create_ioreq_server gives {create.reason}", MEANING, "please report this"
        )
    if machine.is_dom0:
        return missing(
            NAME,
            f"domain {domid}: device-model operations pass, create_ioreq_server gives EPERM, in dom0",
            "a FLASK policy forbids this domain event channels with the guest",
            "allow it in the policy (macro device_model), or boot Xen with xsm=silo or xsm=dummy",
        )
    return missing(
        NAME,
        f"domain {domid}: device-model operations pass, create_ioreq_server gives EPERM",
        "XSM runs in SILO mode, the default on Arm: it vetoes event channels between two domUs, and a server has one"
        " per vCPU",
        "boot Xen with xsm=dummy, or with a FLASK policy that allows it; or serve from dom0",
    )


def _not_permitted(answers: Answers, machine: Machine, domid: str) -> Finding:
    own = machine.xenstore.value("domid")
    if domid == (own or ("0" if machine.is_dom0 else None)):
        return missing(NAME, f"domain {domid} is this domain", "nobody is his own device model", "give a guest")
    if machine.is_dom0:
        return missing(
            NAME,
            f"domain {domid}: every device-model operation gives EPERM, in dom0",
            "a FLASK policy forbids dom0 to be this guest's device model",
            "allow it in the policy (macro device_model), or boot Xen without xsm=flask",
        )
    if answers.failed("restrict"):
        return _blocked_by_kernel(machine, domid)
    if answers.worked("hypercall"):
        return missing(
            NAME,
            f"domain {domid}: this kernel lets hypercalls pass (xen_privcmd.unrestricted), Xen says EPERM",
            "the kernel parameter is only Linux's half: Xen does not know this domain as the guest's device model",
            MAKE_TARGET,
        )
    return missing(
        NAME,
        f"domain {domid}: this kernel has it as its target, Xen says EPERM",
        "the XenStore key `target` is there, but xc_domain_set_target was not called: Xen does not know this domain as"
        " the guest's device model",
        "in dom0 call xc_domain_set_target(THIS_DOMAIN, GUEST); it takes effect at once, and can be done once in the"
        " life of a domain",
    )


def _blocked_by_kernel(machine: Machine, domid: str | None) -> Finding:
    """A kernel with the fix of XSA-482 lets a domU's privcmd reach its target alone, as XenStore had it at boot."""
    target = machine.xenstore.value("target")
    if target is None:
        found = "and XenStore has no `target` for this domain"
        meaning = "without a target the kernel (fix of XSA-482) blocks everything in privcmd of a domU"
        remedy = f"{MAKE_TARGET}. With a FLASK policy instead of a target: kernel parameter xen_privcmd.unrestricted=1"
        if any(word.startswith("xen_privcmd.unrestricted") for word in machine.kernel_arguments):
            remedy += " (it is given, but has no effect under kernel lockdown)"
    elif target == domid:
        found = "although XenStore has it as `target`"
        meaning = "the kernel reads the key once, at boot, and it was written later"
        remedy = f"reboot this domain with the key in place: {MAKE_TARGET}"
    else:
        found = f"as the `target` of this domain is domain {target}"
        meaning = "a driver domain serves one guest, for its whole life; a rebooted guest is another domain"
        remedy = f"a new backend domain for this guest: {MAKE_TARGET}"
    what = "every guest" if domid is None else f"domain {domid}"
    return missing(NAME, f"this kernel's privcmd blocks {what}, {found}", meaning, remedy)
