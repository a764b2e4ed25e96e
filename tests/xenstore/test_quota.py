from __future__ import annotations

import pytest

from xenvirtio.xenstore.quota import CREDIT_BURST, CREDIT_RESERVE, UNLIMITED, Quota, WriteRate, exceeds


def test_wire_names() -> None:
    assert Quota.names() == [
        "nodes", "watches", "transactions", "transaction-nodes", "outstanding", "node-permissions", "node-size",
        "path-max", "memory",
    ]  # fmt: skip
    assert Quota().value("node-size") == 2048
    assert Quota().with_values({"node-size": 5}).node_size == 5
    with pytest.raises(KeyError):
        Quota().value("with_values")


def test_zero_is_unlimited() -> None:
    assert exceeds(10, 10)
    assert not exceeds(9, 10)
    assert not exceeds(10**9, UNLIMITED.nodes)


def test_a_writer_in_debt_waits_and_recovers() -> None:
    rate = WriteRate()
    for _ in range(int(CREDIT_BURST + CREDIT_RESERVE)):
        rate.charge(1, 0.0)
    assert rate.wait_s(1, 0.0) == 0.0
    rate.charge(1, 0.0)
    assert rate.wait_s(1, 0.0) == pytest.approx(1 / 200)
    assert rate.wait_s(1, 0.01) == 0.0


def test_domains_share_the_rate() -> None:
    rate = WriteRate()
    for _ in range(int(2 * CREDIT_BURST + CREDIT_RESERVE) + 2):
        rate.charge(1, 0.0)
        rate.charge(2, 0.0)
    alone = WriteRate()
    assert rate.wait_s(1, 0.0) > alone.wait_s(1, 0.0) == 0.0
    rate.forget(1)
    assert rate.wait_s(1, 0.0) == 0.0
