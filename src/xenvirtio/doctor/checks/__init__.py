"""The checks, in the order of the report: what the machine is, its devices, what Xen allows, this program itself."""

from __future__ import annotations

from collections.abc import Callable

from xenvirtio.doctor.checks import devices, host, hypervisor, ioreq, kernel, xenstore
from xenvirtio.doctor.finding import Finding
from xenvirtio.doctor.machine import Machine

Check = Callable[[Machine], Finding]

ALL: tuple[Check, ...] = (
    hypervisor.check_xen,
    hypervisor.check_domain,
    *devices.NODE_CHECKS,
    kernel.check_irqfd,
    kernel.check_grant_copy,
    kernel.check_options,
    xenstore.check_xenstore,
    ioreq.check_ioreq,
    hypervisor.check_xsm,
    kernel.check_eventfd,
    kernel.check_io_uring,
    host.check_architecture,
    host.check_python,
    host.check_engine,
    host.check_state_directory,
)
