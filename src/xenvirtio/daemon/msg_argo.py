"""virtio-msg over Argo: messages that Xen copies, data in memory that the driver's domain grants.

Argo has no shared memory, and carrying data in messages would copy it twice more and in small pieces. So messages go
over Argo, and DMA addresses carry grant references: the device end maps rings and copies data under Xen's check. One
port, the same number on both sides; with Xen's default policy (SILO) one end must be dom0, for both.
"""

from __future__ import annotations

import errno
import secrets

from xenvirtio.channels.argo import ArgoChannel
from xenvirtio.daemon.dma_space import DmaSpace, GrantDma
from xenvirtio.errors import HypervisorError
from xenvirtio.frontend.grant_area import GrantArea
from xenvirtio.ids import PAGE_SIZE, ArgoPort, DomId
from xenvirtio.virtio.transports.msg_datagram import DatagramLink, DmaKind
from xenvirtio.xen.capabilities import ArgoAddress, Grants, Hypervisor

_NOBODY_THERE = (errno.ECONNREFUSED, errno.ENOTCONN, errno.ENOENT, errno.ESRCH)
_NO_USABLE_RING = (errno.EMSGSIZE, errno.ENOMEM, errno.EINVAL)
"""What Xen answers for a ring too small for any message, or that it cannot use: the peer's doing, which may change."""


class _ToPeer:
    """An Argo channel, towards one domain."""

    def __init__(self, channel: ArgoChannel, peer: ArgoAddress) -> None:
        self._channel = channel
        self._peer = peer

    def send(self, data: bytes) -> bool:
        try:
            return self._channel.send(data, self._peer)
        except HypervisorError as error:
            if error.errno in (*_NOBODY_THERE, *_NO_USABLE_RING):
                return False
            raise

    def receive(self) -> bytes | None:
        message = self._channel.receive()
        return None if message is None else message.data


class ArgoCarrier:
    """One end of a bus between this domain and `peer`, on `port` of both.

    Raises:
        HypervisorError: no Argo, or the port is taken.
    """

    segment_bytes = PAGE_SIZE

    def __init__(self, hypervisor: Hypervisor, peer: DomId, port: ArgoPort) -> None:
        self._hypervisor = hypervisor
        self._peer = peer
        self._channel = ArgoChannel.open(hypervisor, port, [peer])
        self._grants: Grants | None = None
        self._area: GrantArea | None = None
        channel = _ToPeer(self._channel, ArgoAddress(peer, port))
        self.link = DatagramLink(channel, lambda: secrets.randbits(32), DmaKind.GRANTS)
        self.description = f"Argo port {port:#x} with domain {peer}, memory by grants"

    def fileno(self) -> int:
        return self._channel.fileno()

    def take_events(self) -> None:
        """Nothing to do: receiving until nothing is left clears the event."""

    def dma_space(self) -> DmaSpace:
        if self._grants is None:
            self._grants = self._hypervisor.open_grants()
        return GrantDma(self._grants, self._peer)

    def dma_allocator(self) -> GrantArea:
        if self._area is None:
            self._area = GrantArea(self._hypervisor.open_grant_allocator(), self._peer)
        return self._area

    def close(self) -> None:
        self._channel.close()
        if self._area is not None:
            self._area.close()
        if self._grants is not None:
            self._grants.close()
