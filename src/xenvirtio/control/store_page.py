"""The page through which a domain talks to XenStore, for domains that Xen built without one.

Xen up to 4.20 gives a dom0less domain an event channel and writes all ones where the page's number belongs; 4.21 makes
the page too. A guest kernel that finds all ones waits for an event and looks again, so the number is set last.

Source: xen docs/features/dom0less.pandoc, tools/helpers/init-dom0less.c, xen/include/public/io/xs_wire.h.
"""

from __future__ import annotations

import ctypes
import errno
from collections.abc import Callable

from xenvirtio.control.nodes import StorePage
from xenvirtio.errors import HypervisorError
from xenvirtio.ids import PAGE_SIZE, DomId, EventPort, Gfn, GrantRef
from xenvirtio.xen.capabilities import NO_PFN, DomainControl, ForeignMemory, HvmParam

STORE_GFN = Gfn(0x39001)
"""GUEST_MAGIC_BASE and one page (xen/include/public/arch-arm.h)."""

CONNECTION_OFFSET = 2068
"""`connection` in struct xenstore_domain_interface."""

CONNECTION_RECONNECT = 1
"""The guest waits until the server has reset the ring and written 0."""

STORE_GRANT = GrantRef(1)
"""GNTTAB_RESERVED_XENSTORE."""


def provide_store_page(
    control: DomainControl, open_memory: Callable[[DomId], ForeignMemory], domid: DomId
) -> StorePage | None:
    """Return where a domain's ring is, made if it is missing; None for a domain that shall have no XenStore.

    May be repeated after it was cut off at any place.

    Raises:
        HypervisorError: the domain is gone, or its page cannot be made.
    """
    port = control.hvm_param(domid, HvmParam.STORE_EVTCHN)
    pfn = control.hvm_param(domid, HvmParam.STORE_PFN)
    if not port or not pfn:
        return None
    if pfn == NO_PFN:
        pfn = _make_page(control, open_memory, domid)
    return StorePage(Gfn(pfn), EventPort(port))


def _make_page(control: DomainControl, open_memory: Callable[[DomId], ForeignMemory], domid: DomId) -> Gfn:
    memory = open_memory(domid)
    try:
        if not _initialise(memory, domid):
            control.raise_max_memory(domid, 1)
            control.populate_page(domid, STORE_GFN)
            if not _initialise(memory, domid):
                raise HypervisorError("map_frames", errno.EFAULT, domid=domid, hint="the page just made is not there")
    finally:
        memory.close()
    control.seed_grant(domid, STORE_GRANT, STORE_GFN)
    control.set_hvm_param(domid, HvmParam.STORE_PFN, STORE_GFN)
    return STORE_GFN


def _initialise(memory: ForeignMemory, domid: DomId) -> bool:
    """Clear the page and ask the guest to wait; False when the domain has no page there."""
    mapping, errors = memory.map_frames(domid, [STORE_GFN], writable=True)
    with mapping:
        if errors[0]:
            return False
        ctypes.memset(mapping.address, 0, PAGE_SIZE)
        ctypes.c_uint32.from_address(mapping.address + CONNECTION_OFFSET).value = CONNECTION_RECONNECT
    return True
