from __future__ import annotations

import logging

import pytest

from xenvirtio.virtio.bounded_log import BURST, INTERVAL_S, BoundedLog


def test_a_flood_is_cut_and_its_rest_is_counted(caplog: pytest.LogCaptureFixture) -> None:
    now = [100.0]
    log = BoundedLog(logging.getLogger("test"), "disk 0", lambda: now[0])
    for number in range(BURST + 7):
        log.warning(f"problem {number}")
    assert [record.getMessage() for record in caplog.records] == [f"disk 0: problem {n}" for n in range(BURST)]
    assert log.held_back == 7
    now[0] += INTERVAL_S
    log.warning("again")
    assert caplog.records[-1].getMessage() == "disk 0: again (7 more like this were not logged)"
    assert log.held_back == 0
