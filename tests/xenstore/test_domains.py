from __future__ import annotations

import pytest

from xenvirtio.ids import DOMID_SELF, DomId
from xenvirtio.xenstore.domains import Domains
from xenvirtio.xenstore.wire import Feature, RefusedError


def test_the_control_domain_is_there_from_the_start() -> None:
    domains = Domains(Feature.WATCH_DEPTH)
    assert domains.is_introduced(0)
    assert domains.is_introduced(DOMID_SELF)
    assert not domains.is_introduced(1)


def test_a_known_domain_is_not_an_introduced_one() -> None:
    domains = Domains(Feature.WATCH_DEPTH)
    domains.know(DomId(3)).features = Feature(0)
    with pytest.raises(RefusedError, match="ENOENT"):
        domains.introduced(3)
    domains.know(DomId(3)).is_introduced = True
    assert domains.introduced(3).features == Feature(0)


def test_quotas_of_a_domain_go_over_the_common_ones() -> None:
    domains = Domains(Feature(0))
    domains.quota = domains.quota.with_values({"nodes": 50, "watches": 7})
    domains.know(DomId(3)).quota_changes["nodes"] = 9
    assert (domains.quota_of(3).nodes, domains.quota_of(3).watches, domains.quota_of(4).nodes) == (9, 7, 50)
