"""What each Xen can do for a statically partitioned system, by the release that brought it.

Source: the properties that xen/arch/arm/{domain_build,dom0less-build,static-shmem,static-evtchn}.c, and from 4.21 on
xen/common/device-tree/, read on the stable branches.
"""

from __future__ import annotations

import re
from enum import Enum

from xenvirtio.xen.capabilities import XenVersion

OLDEST = XenVersion(4, 17)
"""The first with everything that a pair of static ends needs: static memory, shared memory, event channels."""


def parse_xen_version(text: str) -> XenVersion | None:
    """Return None for what is no version. A third number is allowed and ignored: releases of a branch do not differ."""
    match = re.fullmatch(r"([0-9]{1,3})\.([0-9]{1,3})(\.[0-9]{1,3})?", text, re.ASCII)
    return XenVersion(int(match[1]), int(match[2])) if match else None


class Feature(Enum):
    """A feature: the first Xen that has it, and what it is called."""

    GRANT_LIMITS = (XenVersion(4, 18), "a grant table limit per domain")
    HEAP_REGIONS = (XenVersion(4, 19), "shared memory from Xen's heap")
    CAPABILITIES = (XenVersion(4, 21), "capabilities of a domain that Xen builds")
    LEGACY_XENSTORE = (XenVersion(4, 21), 'enhanced = "legacy"')
    UNMAPPED_READS = (XenVersion(4, 21), "trap_unmapped_accesses = false")
    SPLIT_STATIC_MEMORY = (XenVersion(4, 22), "static memory that crosses from the guest's first bank to the second")
    """Before, allocate_static_memory() counts only what lies in the second bank, and panics over the sum."""

    @property
    def since(self) -> XenVersion:
        return self.value[0]

    @property
    def what(self) -> str:
        return self.value[1]

    def is_in(self, version: XenVersion) -> bool:
        return version >= self.since
