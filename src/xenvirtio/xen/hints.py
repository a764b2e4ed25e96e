"""What an errno of Xen or of its Linux drivers usually means, for the person who reads the message.

Seen on Xen 4.20 and Linux 6.12; where one errno has several causes the hint says how to tell them apart.
"""

from __future__ import annotations

import errno

from xenvirtio.errors import HypervisorError

_NO_RIGHTS = (
    "no device-model rights over this domain: run in dom0, or make it the `target` of this driver domain "
    "(xc_domain_set_target and the XenStore key `target`, which kernels with XSA-482 read once at boot)"
)

_NO_IOREQ = "this Xen was built without IOREQ servers; build it with CONFIG_EXPERT=y and CONFIG_IOREQ_SERVER=y"

_NOT_CONTROL = "only the control domain (dom0) may list and change domains"

PRIVCMD_WOULD_BLOCK = (
    "this domain has no XenStore (yet), and its kernel would hang here and hold up every other user of Xen's device "
    "nodes: put xen_privcmd.unrestricted=1 on its command line"
)

_ARGO_XSM = "Xen's XSM policy forbids it; SILO (the default on Arm) does between two unprivileged domains"

_HINTS: dict[tuple[str, int], str] = {
    ("nr_vcpus", errno.ENOSYS): _NO_IOREQ,
    ("create_ioreq_server", errno.EOPNOTSUPP): _NO_IOREQ,
    ("create_ioreq_server", errno.EPERM): (
        "if other device-model operations work, Xen runs XSM in SILO mode (the default on Arm), which forbids event "
        "channels between unprivileged domains: boot Xen with xsm=dummy or a FLASK policy; otherwise " + _NO_RIGHTS
    ),
    ("create_ioreq_server", errno.ENOSPC): (
        "all 8 IOREQ servers of the guest are taken; servers of dead backends stay until they are destroyed, "
        "or the guest is"
    ),
    ("map_io_range", errno.EEXIST): "the range overlaps one that this IOREQ server has already",
    ("map_io_range", errno.ENOMEM): "the IOREQ server has its 256 ranges already",
    ("map_io_range", errno.ENOENT): "there is no such IOREQ server",
    ("map_io_range", errno.EPERM): "the IOREQ server was created by another domain",
    ("set_irq_level", errno.EINVAL): "not a shared interrupt of this guest, or one that Xen itself drives (vpl011)",
    ("map_ioreq_page", errno.ENOENT): "there is no such IOREQ server",
    ("bind_interdomain", errno.EINVAL): "the port is bound already, or is not offered to this domain",
    ("bind_interdomain", errno.EACCES): "these event channels are restricted to another domain",
    ("bind_interdomain", errno.EPERM): "Xen's XSM policy forbids it; SILO does between two unprivileged domains",
    ("bind_virq", errno.EEXIST): "another process of this domain has bound this interrupt; Xen allows one",
    ("bind_virq", errno.EPERM): "Xen gives this interrupt to one domain, and it is not this one",
    (
        "argo_notify",
        errno.ENOSYS,
    ): "this Xen was built without Argo; build it with CONFIG_UNSUPPORTED=y and CONFIG_ARGO=y",
    ("argo_notify", errno.EOPNOTSUPP): "Argo is off: put argo=1 on Xen's command line",
    ("argo_notify", errno.ENODEV): "Xen gives this domain no Argo (an XSM policy)",
    ("argo_notify", errno.EPERM): (
        "the kernel of this guest blocks hypercalls from user space: put xen_privcmd.unrestricted=1 on its command line"
    ),
    ("argo_register_ring", errno.EEXIST): (
        "this domain has that ring already: another process uses it, or was killed together with its keeper; "
        "if nobody uses it: xenvirtio argo release"
    ),
    ("argo_register_ring", errno.EINVAL): "the length is 48 bytes up to 16 MiB, a multiple of 16",
    ("argo_register_ring", errno.EPERM): _ARGO_XSM,
    ("argo_register_ring", errno.ENOSPC): "this domain has its 128 rings already",
    ("argo_register_ring", errno.ECONNREFUSED): "that domain has no Argo (an XSM policy)",
    ("argo_unregister_ring", errno.ENOENT): "this domain has no such ring",
    ("argo_send", errno.EPERM): _ARGO_XSM,
    ("argo_send", errno.ECONNREFUSED): "nobody there listens on that port for this domain",
    ("argo_send", errno.EMSGSIZE): "longer than the receiver's ring ever takes",
    ("argo_send", errno.EAGAIN): "the receiver's ring is full",
    ("argo_send", errno.EBUSY): "the receiver's ring is full, and too many domains wait for room in it",
    ("map_grants", errno.EINVAL): (
        "a reference is not granted to this domain, is read-only while writing was asked for, or XSM (SILO) forbids it"
    ),
    ("get_domain_info", errno.EPERM): _NOT_CONTROL,
    ("list_domains", errno.EPERM): _NOT_CONTROL,
    ("xen_version", errno.EPERM): _NOT_CONTROL,
    ("populate_page", errno.ENOMEM): "the domain is at its memory limit, or Xen has no page left",
    ("seed_grant", errno.EACCES): "Xen lets only the hardware domain map another domain's grant table",
    ("open_irqfd", errno.EBUSY): "the eventfd has an interrupt already",
}

_GENERAL: dict[int, str] = {
    errno.EPERM: _NO_RIGHTS,
    errno.ESRCH: "the domain does not exist any more",
}

_OPENING: dict[int, str] = {
    errno.ENOENT: "not on Xen, or the modules xen-privcmd, xen-evtchn, xen-gntdev, xen-gntalloc are not loaded",
    errno.ENODEV: "this kernel does not run on Xen",
    errno.ENXIO: "this kernel does not run on Xen",
    errno.EACCES: "Xen's device nodes belong to root",
    errno.EPERM: "Xen's device nodes belong to root",
}


def hypervisor_error(operation: str, error: int, domid: int | None = None) -> HypervisorError:
    """Make the error for a refused operation, with the likely cause when one is known."""
    hint = _HINTS.get((operation, error)) or _GENERAL.get(error)
    return HypervisorError(operation, error, domid=domid, hint=hint)


def open_error(path: str, error: int) -> HypervisorError:
    return HypervisorError(f"open {path}", error, hint=_OPENING.get(error))
