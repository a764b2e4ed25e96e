"""Is this Xen, what are we to it, and which security module runs."""

from __future__ import annotations

from xenvirtio.doctor.finding import Finding, missing, ok, skipped, warning
from xenvirtio.doctor.machine import DomainKind, Machine

NOT_ON_XEN = "not on Xen"

WHAT_SILO_MEANS = "under SILO two domUs share neither event channels nor grants, so a backend has to run in dom0"


def check_xen(machine: Machine) -> Finding:
    if machine.is_on_xen:
        version = machine.xen_version
        return ok("xen", f"Xen {version}" if version else "Xen, version not readable (no CONFIG_XEN_SYS_HYPERVISOR)")
    if _device_tree_names_xen(machine):
        return missing(
            "xen",
            "the device tree names Xen, but this kernel does not use it",
            "the kernel was built without Xen support, so it has none of Xen's device nodes",
            "build the kernel with CONFIG_XEN, CONFIG_XEN_SYS_HYPERVISOR, CONFIG_XENFS and CONFIG_XEN_PRIVCMD",
        )
    return missing(
        "xen",
        "no /sys/hypervisor/type that says xen, no /proc/xen",
        "no Xen runs below this kernel; a dom0less domain that was not declared `xen,enhanced` looks the same",
        "boot Xen with this system as dom0 (xen-system-amd64 or -arm64 on Debian), or try `xenvirtio demo` and"
        " `xenvirtio lab`, which need none",
    )


def _device_tree_names_xen(machine: Machine) -> bool:
    return "xen,xen" in (machine.text("/proc/device-tree/hypervisor/compatible") or "")


def check_domain(machine: Machine) -> Finding:
    match machine.domain_kind:
        case DomainKind.NO_XEN:
            return skipped("domain", NOT_ON_XEN)
        case DomainKind.DOM0:
            return ok("domain", "dom0: may serve any number of guests")
        case DomainKind.DOMU:
            own = machine.xenstore.value("domid")
            target = machine.xenstore.value("target")
            found = "a domU" if own is None else f"domU {own}"
            if target is not None:
                return ok("domain", f"{found}, device model of domain {target}: may serve that one guest")
            return warning(
                "domain",
                f"{found} without a `target` in XenStore",
                "a driver domain serves the one guest whose device model it was made; this one was made nobody's."
                " With a FLASK policy of its own it needs no target",
                "create backend domain and guest paused, write /local/domain/BACKEND/target = GUEST and call"
                " xc_domain_set_target(BACKEND, GUEST) in dom0, then unpause the backend domain, then the guest;"
                " or serve from dom0",
            )


def check_xsm(machine: Machine) -> Finding:
    """Which XSM module decides: Xen's command line, else the default Xen was built with."""
    if not machine.is_on_xen:
        return skipped("xsm", NOT_ON_XEN)
    if not machine.is_dom0:
        return skipped(
            "xsm",
            "only dom0 may ask Xen",
            f"SILO is the default on Arm; {WHAT_SILO_MEANS}",
            "look in dom0: xl dmesg | grep -i xsm; `xenvirtio doctor --guest NAME` shows what it does to a guest",
        )
    mode, source = _xsm_mode(machine)
    if mode is None:
        return skipped(
            "xsm",
            "neither Xen's command line nor its build configuration can be read",
            f"serving from dom0 works in every mode but a strict FLASK policy; {WHAT_SILO_MEANS}",
            "xl dmesg | grep -i xsm",
        )
    if mode == "flask":
        return warning(
            "xsm",
            f"FLASK ({source})",
            "the policy decides what this domain may do to guests",
            "try it with `xenvirtio doctor --guest NAME`; the macro device_model in Xen's tools/flask/policy names the"
            " permissions a backend needs",
        )
    return ok("xsm", f"SILO ({source}): fine in dom0" if mode == "silo" else f"dummy ({source})")


def _xsm_mode(machine: Machine) -> tuple[str | None, str]:
    """Source: xen/xsm/xsm_core.c, parse_xsm_param; xen/common/Kconfig, "Default XSM implementation"."""
    options = machine.xen_options
    line = machine.privcmd.value("command_line")
    if options is not None and options.get("CONFIG_XSM") != "y":
        return "dummy", "Xen built without XSM"
    if line is not None:
        chosen = [word.removeprefix("xsm=") for word in line.split() if word.startswith("xsm=")]
        if chosen and chosen[-1] in ("dummy", "silo", "flask"):
            return chosen[-1], "Xen's command line"
    if options is not None and line is not None:
        for mode in ("silo", "flask", "dummy"):
            if options.get(f"CONFIG_XSM_{mode.upper()}_DEFAULT") == "y":
                return mode, "default of this Xen"
    return None, ""
