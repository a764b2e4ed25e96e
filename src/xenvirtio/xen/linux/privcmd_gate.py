"""Whether privcmd may be opened here without stopping everything."""

from __future__ import annotations

from pathlib import Path

_XENFEAT_DOM0 = 1 << 11
"""Source: xen/include/public/features.h."""


def would_block(root: Path = Path("/")) -> bool:
    """Would opening privcmd hang, and with it every other open of a node of Xen in this domain?

    So it is in a guest without XenStore, until XenStore is there; unless `xen_privcmd.unrestricted` is set. Seen on
    Linux 6.12; older kernels without that option do not hang, and are not told apart.
    """

    def text(path: str) -> str:
        try:
            return (root / path).read_text(errors="replace")
        except OSError:
            return ""

    is_connected = any(line.split()[-1:] == ["xenbus"] for line in text("proc/interrupts").splitlines())
    features = text("sys/hypervisor/properties/features").strip()[-8:]
    is_dom0 = "control_d" in text("proc/xen/capabilities") or bool(_hexadecimal(features) & _XENFEAT_DOM0)
    arguments = [word.replace("-", "_") for word in text("proc/cmdline").split()]
    is_unrestricted = any(
        word.partition("=")[0] == "xen_privcmd.unrestricted" and word.partition("=")[2].lower() in ("", "1", "y", "on")
        for word in arguments
    )
    return not (is_connected or is_dom0 or is_unrestricted)


def _hexadecimal(text: str) -> int:
    try:
        return int(text, 16)
    except ValueError:
        return 0
