"""The releases of Xen whose control interface (domctl, sysctl) is known here.

That interface is locked to a release: numbers and layouts may change with each one, and Xen only compares one version
number. A release that nobody has looked at is refused, because a wrong layout does not fail, it does something else.
"""

from __future__ import annotations

import errno

from xenvirtio.errors import HypervisorError
from xenvirtio.xen.capabilities import XenVersion

KNOWN_RELEASES = tuple(XenVersion(4, minor) for minor in range(17, 23))


def check_known(version: XenVersion) -> None:
    """Refuse a release whose control interface is not known.

    Raises:
        HypervisorError: EOPNOTSUPP; the message names the release found and those that are known.
    """
    if version not in KNOWN_RELEASES:
        hint = (
            f"this is Xen {version}, whose control interface is not known; "
            f"known: {KNOWN_RELEASES[0]} to {KNOWN_RELEASES[-1]}"
        )
        raise HypervisorError("open_domain_control", errno.EOPNOTSUPP, hint=hint)
