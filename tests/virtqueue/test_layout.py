from __future__ import annotations

import pytest

from xenvirtio.virtqueue.layout import avail_bytes, desc_bytes, used_bytes


@pytest.mark.parametrize(
    ("size", "desc", "avail", "used"),
    [(1, 16, 8, 14), (2, 32, 10, 22), (256, 4096, 518, 2054), (32768, 524288, 65542, 262150)],
)
def test_areas_include_the_event_fields(size: int, desc: int, avail: int, used: int) -> None:
    assert (desc_bytes(size), avail_bytes(size), used_bytes(size)) == (desc, avail, used)
