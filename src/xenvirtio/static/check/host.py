"""The machine that a description names against the device tree that Xen will be given for it."""

from __future__ import annotations

from collections.abc import Iterator

from xenvirtio.static.check.finding import Finding, warning
from xenvirtio.static.host import Host


def check_host_tree(host: Host, tree: Host) -> Iterator[Finding]:
    """Yield where the tree is of another machine. Warnings, since a boot loader may still complete its memory."""
    if host.gic_version != tree.gic_version:
        message = f"GICv{host.gic_version} here and GICv{tree.gic_version} in the tree; give the tree of this machine"
        yield warning("host-tree-gic", host.where, tree.where, message)
    for bank in host.memory:
        if not any(known.contains(bank) for known in tree.memory):
            found = ", ".join(str(known) for known in tree.memory)
            message = f"RAM {bank} is not all in the tree, which has {found}; give the tree of this machine"
            yield warning("host-tree-memory", host.where, tree.where, message)
