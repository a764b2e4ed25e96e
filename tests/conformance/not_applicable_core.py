"""Statements about every device that say nothing about ours, each with the reason."""

from __future__ import annotations

_NEVER_SUSPENDED = "SUSPEND is not offered, so a device is never suspended (core.7.1 shows that the bit is ignored)"

CORE: dict[str, str] = {
    "core.7.2": _NEVER_SUSPENDED,
    "core.7.3": _NEVER_SUSPENDED,
    "core.7.4": _NEVER_SUSPENDED,
    "core.7.5": _NEVER_SUSPENDED,
    "core.7.6": _NEVER_SUSPENDED,
    "core.7.7": _NEVER_SUSPENDED,
    "core.7.8": _NEVER_SUSPENDED,
    "core.8.4": "concerns PCI devices with an SR-IOV capability; no PCI transport exists here",
}
