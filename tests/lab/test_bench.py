from __future__ import annotations

import pytest

from xenvirtio.errors import ResourceError
from xenvirtio.ids import DomId
from xenvirtio.lab.backend import ProcessTime
from xenvirtio.lab.bench import COST_NAMES, ROWS, Snapshot, counts_of, line_of, per_request, summarize, table_of

COUNTERS = {
    "a": {
        "pump": {"accesses": 30, "kicks": 10, "wakeups": 29},
        "devices": {
            "a/virtio/0": dict.fromkeys(("requests", "batches", "interrupts", "grant_calls", "grant_segments"), 2),
            "a/virtio/1": dict.fromkeys(("requests", "batches", "interrupts", "grant_calls", "grant_segments"), 3),
        },
    }
}


def test_the_devices_of_a_guest_are_added_up() -> None:
    counts = counts_of(COUNTERS, "a")
    assert (counts["accesses"], counts["requests"], counts["grant_segments"]) == (30, 5, 5)
    with pytest.raises(ResourceError, match="guest b"):
        counts_of(COUNTERS, "b")


def test_costs_are_differences_per_request() -> None:
    counts = counts_of(COUNTERS, "a")
    before = Snapshot(counts, ProcessTime(1.0, 2.0), {DomId(0): 10.0, DomId(3): 5.0})
    later = {name: value * 3 for name, value in counts.items()}
    after = Snapshot(later, ProcessTime(1.5, 2.25), {DomId(0): 11.0, DomId(3): 7.0})
    costs = per_request(before, after, DomId(3))
    assert costs["accesses"] == 6.0
    assert (costs["daemon_user_us"], costs["daemon_system_us"]) == (50000.0, 25000.0)
    assert (costs["guest_us"], costs["dom0_us"]) == (200000.0, 100000.0)
    assert set(costs) == set(COST_NAMES)
    with pytest.raises(ResourceError, match="no request"):
        per_request(before, before, DomId(3))


def test_a_summary_is_the_median_and_half_the_range() -> None:
    assert summarize([100.0, 90.0, 120.0]) == {"median": 100.0, "spread": 0.15}


def test_the_table_shows_every_cost_and_the_reference() -> None:
    modes = {
        mode: {"median": 150.0, "spread": 0.1, "p50_us": 6000, "per_request": dict.fromkeys(COST_NAMES, 1.0)}
        for mode in ("foreign", "grant")
    }
    row = {"name": ROWS[0].name, "unit": ROWS[0].unit, "reference": ROWS[0].reference, "modes": modes}
    assert "reference 138" in line_of(row)
    table = table_of({"rows": [row], "note": "a note"})
    assert all(name in table for name in COST_NAMES.values())
    assert table.endswith("a note")
