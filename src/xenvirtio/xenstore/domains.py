"""The domains the server knows: introduced, released, whom they speak for, what they may use."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from xenvirtio.ids import DOMID_SELF, DomId
from xenvirtio.xenstore.quota import Quota
from xenvirtio.xenstore.recorder import NoRecorder, Recorder
from xenvirtio.xenstore.wire import Feature, RefusedError

CONTROL_DOMID = DomId(0)
"""The domain of the toolstack and, here, of the server itself."""


class DomainHost(Protocol):
    """What the server asks of the side that has the hypervisor."""

    def exists(self, domid: DomId) -> bool:
        """Is there such a domain, introduced or not?"""

    def connect(self, domid: DomId, gfn: int, port: int) -> None:
        """Serve a domain's ring; for one that is served already: bind the event channel anew, reset the ring."""

    def disconnect(self, domid: DomId) -> None:
        """Stop serving a domain's ring."""


class NoHypervisor:
    """A server that only has sockets: every domain is taken to exist, rings are nobody's business."""

    def exists(self, domid: DomId) -> bool:
        return True

    def connect(self, domid: DomId, gfn: int, port: int) -> None: ...

    def disconnect(self, domid: DomId) -> None: ...


@dataclass(slots=True)
class Domain:
    """One domain. It may be known (features, quota) before it is introduced."""

    domid: DomId
    features: Feature
    gfn: int = 0
    port: int = 0
    is_introduced: bool = False
    is_shutdown_announced: bool = False
    target: DomId | None = None
    """The domain it speaks for, as a device model does."""
    agents: set[DomId] = field(default_factory=set)
    """The domains that speak for it."""
    quota_changes: dict[str, int] = field(default_factory=dict)


class Domains:
    """All domains, by domid."""

    def __init__(self, features: Feature) -> None:
        self.features = features
        self.recorder: Recorder = NoRecorder()
        self._quota = Quota()
        self._known: dict[int, Domain] = {}
        self.know(CONTROL_DOMID).is_introduced = True

    @property
    def quota(self) -> Quota:
        """The bounds of every domain that has none of its own."""
        return self._quota

    @quota.setter
    def quota(self, quota: Quota) -> None:
        self._quota = quota
        self.recorder.quota_changed()

    def changed(self, domid: int) -> None:
        """To be called after the record of a domain was changed."""
        self.recorder.domain_changed(domid)

    def all(self) -> list[Domain]:
        return list(self._known.values())

    def know(self, domid: DomId) -> Domain:
        """Return the record of a domain, made when there is none."""
        return self._known.setdefault(domid, Domain(domid, self.features))

    def find(self, domid: int) -> Domain | None:
        return self._known.get(domid)

    def introduced(self, domid: int) -> Domain:
        """Return an introduced domain.

        Raises:
            RefusedError: ENOENT.
        """
        domain = self._known.get(domid)
        if domain is None or not domain.is_introduced:
            raise RefusedError("ENOENT", f"domain {domid} is not introduced")
        return domain

    def is_introduced(self, domid: int) -> bool:
        if domid == DOMID_SELF:
            return True
        domain = self._known.get(domid)
        return domain is not None and domain.is_introduced

    def forget(self, domid: int) -> None:
        self._known.pop(domid, None)
        self.changed(domid)

    def quota_of(self, domid: int) -> Quota:
        """Return the bounds of a domain: the common ones, with its own changes."""
        domain = self._known.get(domid)
        if domain is None or not domain.quota_changes:
            return self.quota
        return self.quota.with_values(domain.quota_changes)
