"""Integers that mean something, each a type of its own.

A `Gfn` is no `DomId`: the type checker keeps them apart, at run time they are plain `int`.
"""

from __future__ import annotations

from typing import NewType

DomId = NewType("DomId", int)
"""A Xen domain number, 0..0x7fef. Reused after a domain has died: never an identity across restarts."""

Gfn = NewType("Gfn", int)
"""A guest frame number: guest-physical address >> 12."""

GrantRef = NewType("GrantRef", int)
"""An index into the granting domain's grant table, 32 bits."""

EventPort = NewType("EventPort", int)
"""A *local* event-channel port, valid only for the descriptor that bound it."""

RemotePort = NewType("RemotePort", int)
"""A port in the other domain's numbering, as its owner announced it (for example `vp_eport`)."""

ServerId = NewType("ServerId", int)
"""An IOREQ server of one guest, 0..7. Belongs to the backend *domain* and outlives the process."""

DmaAddress = NewType("DmaAddress", int)
"""An address as the driver put it on the ring: guest-physical, or a grant reference with bit 63 set."""

ArgoPort = NewType("ArgoPort", int)
"""A port of Argo, 32 bits. A convention between the two ends: nobody hands them out."""

Spi = NewType("Spi", int)
"""A guest interrupt as a GIC INTID (33..43 for virtio-mmio slots made by libxl)."""

DOMID_SELF = DomId(0x7FF0)
DOMID_IDLE = DomId(0x7FFF)

PAGE_SIZE = 4096
"""Xen's page, on every architecture and whatever page size the guest uses itself."""

GRANT_BIT = 1 << 63
"""Set in a `DmaAddress` that carries a grant reference.

Source: Linux drivers/xen/grant-dma-ops.c, XEN_GRANT_DMA_ADDR_OFF.
"""
