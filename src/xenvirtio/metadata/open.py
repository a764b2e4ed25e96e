"""Which channel carries metadata here, and opening the directory over it.

    with closing(open_directory()) as directory:
        directory.register("root", "block", {"base": "0x2000000", "irq": "33"})

By itself it takes XenStore where there is one or one is promised, else the plan that was placed in this domain, else
Argo. XenStore comes first because everything else on such a system looks there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from xenvirtio.channels.xenbus_device import KernelStore
from xenvirtio.errors import ConfigurationError
from xenvirtio.ids import DomId
from xenvirtio.metadata.argo import ArgoDirectory
from xenvirtio.metadata.directory import Directory
from xenvirtio.metadata.plan import PlanDirectory
from xenvirtio.metadata.xenstore import XenStoreDirectory
from xenvirtio.static.plan import DEFAULT_PLAN, load_plan
from xenvirtio.xen.capabilities import Hypervisor
from xenvirtio.xenstore.connect import look
from xenvirtio.xenstore.open import open_store


class Via(Enum):
    """The channels."""

    XENSTORE = "xenstore"
    PLAN = "plan"
    ARGO = "argo"


@dataclass(frozen=True, slots=True)
class Ways:
    """Where each channel would be found. `open_hypervisor` is for Argo; without it there is none.

    `peers` are the domains that may read what is registered in XenStore, and that are looked at beside this one where
    domains may not be listed. `wait_s`: how long a XenStore that is late, or a registry, is waited for.
    """

    socket: Path | None = None
    plan: Path = DEFAULT_PLAN
    peers: tuple[DomId, ...] = ()
    registry: DomId = DomId(0)  # noqa: RUF009 - a NewType is no call that could go wrong
    open_hypervisor: Callable[[], Hypervisor] | None = None
    wait_s: float = 10.0


def choose(ways: Ways, *, store: KernelStore | None = None) -> Via:
    """Choose by what is there.

    Raises:
        ConfigurationError: nothing is; says what was looked for.
    """
    state = look(ways.socket).state if store is None else store
    if state is not KernelStore.ABSENT:
        return Via.XENSTORE
    if ways.plan.exists():
        return Via.PLAN
    if ways.open_hypervisor is not None:
        return Via.ARGO
    raise ConfigurationError("metadata", f"no XenStore, no {ways.plan}, no Argo", "allowed: any of them")


def open_directory(ways: Ways | None = None, via: Via | None = None) -> Directory:
    """Open the directory over `via`, or over what is there.

    Raises:
        ConfigurationError: a plan that is wrong, or nothing to choose from.
        StoreNotReadyError: XenStore was asked for and is not there.
        HypervisorError: Argo was asked for, or is all that is left, and cannot be used.
    """
    ways = Ways() if ways is None else ways
    match choose(ways) if via is None else via:
        case Via.XENSTORE:
            return XenStoreDirectory(open_store(ways.wait_s, ways.socket), ways.peers)
        case Via.PLAN:
            return PlanDirectory(load_plan(ways.plan), str(ways.plan))
        case Via.ARGO:
            if ways.open_hypervisor is None:
                raise ConfigurationError("metadata", "Argo without a hypervisor", "give open_hypervisor")
            return ArgoDirectory(ways.open_hypervisor(), ways.registry, timeout_s=ways.wait_s)
