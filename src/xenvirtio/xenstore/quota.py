"""What an unprivileged domain may use, and how fast it may write.

Privileged callers (sockets, the control domain) are never bounded. Source: C xenstored's defaults.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace


@dataclass(frozen=True, slots=True)
class Quota:
    """Bounds of one domain. 0 is unlimited; a use is refused when it would find `used >= bound`."""

    nodes: int = 1000
    watches: int = 128
    transactions: int = 10
    transaction_nodes: int = 1024
    outstanding: int = 20
    node_permissions: int = 5
    node_size: int = 2048
    path_max: int = 2048
    memory: int = 2621440

    @classmethod
    def names(cls) -> list[str]:
        """The names used on the wire."""
        return [field.name.replace("_", "-") for field in fields(cls)]

    def value(self, name: str) -> int:
        """Return one bound by its wire name.

        Raises:
            KeyError: no such quota.
        """
        if name not in self.names():
            raise KeyError(name)
        return int(getattr(self, name.replace("-", "_")))

    def with_values(self, values: Mapping[str, int]) -> Quota:
        """Return a quota with bounds changed, given by wire name."""
        return replace(self, **{name.replace("-", "_"): value for name, value in values.items()})


UNLIMITED = Quota().with_values(dict.fromkeys(Quota.names(), 0))


def exceeds(used: int, bound: int) -> bool:
    """Is nothing left of a bound?"""
    return bool(bound) and used >= bound


CREDIT_PER_S = 200.0
"""Writes per second by which all unprivileged domains together may make open transactions fail. Without it one guest
that writes in a loop makes everybody else's transactions fail for ever."""
CREDIT_BURST = 10.0
CREDIT_RESERVE = 1000.0


@dataclass(slots=True)
class _Account:
    credit: float
    updated_s: float


class WriteRate:
    """Credit for writes that can make other callers' transactions fail.

    Each domain earns its share of CREDIT_PER_S up to CREDIT_BURST; what is above goes to a reserve that all draw
    from. A domain in debt is not read until it has earned its way out. Costs do not depend on the number of domains.
    """

    def __init__(self) -> None:
        self._accounts: dict[int, _Account] = {}
        self._reserve = CREDIT_RESERVE

    def charge(self, domid: int, now_s: float) -> None:
        """Take one credit for one write or commit."""
        account = self._earn(domid, now_s)
        account.credit -= 1
        if account.credit < 0:
            drawn = min(-account.credit, self._reserve)
            account.credit += drawn
            self._reserve -= drawn

    def wait_s(self, domid: int, now_s: float) -> float:
        """Return how long this domain is not to be read; 0.0 when it may write."""
        if domid not in self._accounts:
            return 0.0
        debt = -self._earn(domid, now_s).credit
        return max(0.0, debt / self._share())

    def forget(self, domid: int) -> None:
        """A domain is gone."""
        self._accounts.pop(domid, None)

    def _share(self) -> float:
        return CREDIT_PER_S / max(1, len(self._accounts))

    def _earn(self, domid: int, now_s: float) -> _Account:
        account = self._accounts.setdefault(domid, _Account(CREDIT_BURST, now_s))
        earned = account.credit + (now_s - account.updated_s) * self._share()
        account.updated_s = now_s
        account.credit = min(earned, CREDIT_BURST)
        self._reserve = min(CREDIT_RESERVE, self._reserve + max(0.0, earned - CREDIT_BURST))
        return account
