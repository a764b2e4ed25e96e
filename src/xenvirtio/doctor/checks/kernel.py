"""What this kernel can do."""

from __future__ import annotations

import errno

from xenvirtio.doctor.checks.hypervisor import NOT_ON_XEN
from xenvirtio.doctor.finding import Finding, missing, ok, skipped, warning
from xenvirtio.doctor.machine import Machine

BACKEND_OPTIONS = {
    "CONFIG_XEN_PRIVCMD": "IOREQ servers and foreign mapping",
    "CONFIG_XEN_DEV_EVTCHN": "event channels",
    "CONFIG_XEN_GNTDEV": "grants",
    "CONFIG_XENFS": "/proc/xen",
    "CONFIG_XEN_PRIVCMD_EVENTFD": "irqfd",
}

_NO_SUCH_IOCTL = (errno.EOPNOTSUPP, errno.ENOTTY, errno.ENOSYS)


def check_irqfd(machine: Machine) -> Finding:
    if not machine.is_on_xen:
        return skipped("irqfd", NOT_ON_XEN)
    step = machine.privcmd.get("irqfd")
    if step is None:
        return skipped("irqfd", "privcmd cannot be asked")
    if step.error in _NO_SUCH_IOCTL:
        return warning(
            "irqfd",
            f"privcmd has no irqfd ({errno.errorcode[step.error]})",
            "interrupts cost a device-model operation each, about twice the time; everything works",
            "Linux 6.6 or newer with CONFIG_XEN_PRIVCMD_EVENTFD=y",
        )
    # EINVAL: it looked at our nonsense; EPERM: it looked at the domain first
    return ok("irqfd", "privcmd has irqfd")


def check_grant_copy(machine: Machine) -> Finding:
    if not machine.is_on_xen:
        return skipped("grant copy", NOT_ON_XEN)
    step = machine.nodes.get("grant_copy")
    if step is None:
        return skipped("grant copy", "gntdev cannot be asked")
    if step.worked:
        return ok("grant copy", "gntdev copies")
    return missing(
        "grant copy",
        f"gntdev does not copy: {step.reason}",
        "guests with grant_usage=1 cannot be served: data goes by GRANT_COPY",
        "Linux 4.9 or newer",
    )


def check_options(machine: Machine) -> Finding:
    name = "kernel options"
    if not machine.is_on_xen:
        return skipped(name, NOT_ON_XEN)
    options = machine.kernel_options
    if options is None:
        return skipped(
            name,
            f"the configuration of Linux {machine.kernel_release} is not readable",
            "no /proc/config.gz, no /boot/config-*; the other checks tell what works",
        )
    off = [option for option in BACKEND_OPTIONS if option not in options]
    guests = (
        "guests that run this kernel can do both memory modes"
        if "CONFIG_XEN_VIRTIO" in options
        else "CONFIG_XEN_VIRTIO is off: guests that run this kernel need grant_usage=0"
    )
    if not off:
        return ok(name, f"all that a backend uses is on; {guests}")
    return warning(
        name,
        f"off: {', '.join(off)}; {guests}",
        "; ".join(f"{option} is for {BACKEND_OPTIONS[option]}" for option in off),
        "build the kernel with " + " ".join(f"{option}=y" for option in off),
    )


def check_eventfd(machine: Machine) -> Finding:
    step = machine.kernel.get("eventfd")
    if step is not None and step.worked:
        return ok("eventfd", "works")
    return missing(
        "eventfd",
        "does not work" if step is None else f"does not work: {step.reason}",
        "queues and interrupts are signalled by eventfds",
        "a kernel with CONFIG_EVENTFD=y; in a container, a seccomp profile that allows eventfd2",
    )


def check_io_uring(machine: Machine) -> Finding:
    step = machine.kernel.get("io_uring")
    if step is not None and step.worked:
        return ok("io_uring", "works")
    setting = machine.text("/proc/sys/kernel/io_uring_disabled")
    remedy = "a kernel with CONFIG_IO_URING=y; in a container, a seccomp profile that allows io_uring"
    if setting not in (None, "0"):
        remedy = f"sysctl kernel.io_uring_disabled=0 (it is {setting})"
    return warning(
        "io_uring",
        "the probe was killed" if step is None else f"does not work: {step.reason}",
        "block I/O goes through a pool of threads instead: slower, everything works",
        remedy,
    )
