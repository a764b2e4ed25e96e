"""Noticing over Argo that another domain has ended, with no help from a toolstack.

Xen drops every ring that was registered for a domain when that domain ends, without a word. So a small ring is kept for
it that nobody uses, and taken back and registered again from time to time: when Xen does not know it any more, the
domain has ended since, even if another one has its number by now.
"""

from __future__ import annotations

import errno

from xenvirtio.errors import HypervisorError
from xenvirtio.ids import ArgoPort, DomId
from xenvirtio.xen.capabilities import Argo, Mapping

RING_BYTES = 48


class Pulse:
    """Of one domain. `has_ended` is asked every few seconds."""

    def __init__(self, argo: Argo, port: ArgoPort, domid: DomId) -> None:
        """Begin.

        Raises:
            HypervisorError: ESRCH, there is no such domain.
        """
        self._argo = argo
        self._port = port
        self._domid = domid
        self._ring: Mapping = self._register()

    def _register(self) -> Mapping:
        return self._argo.register_ring(self._port, self._domid, RING_BYTES)

    def has_ended(self) -> bool:
        """Has the domain ended since the last time? Then this pulse is over, and closed."""
        try:
            self._argo.unregister_ring(self._port, self._domid)
        except HypervisorError as error:
            self._ring.close()
            if error.errno == errno.ENOENT:
                return True
            raise
        self._ring.close()
        try:
            self._ring = self._register()
        except HypervisorError as error:
            if error.errno == errno.ESRCH:
                return True
            raise
        return False

    def close(self) -> None:
        self._ring.close()
