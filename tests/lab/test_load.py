from __future__ import annotations

import pytest

from xenvirtio.errors import ResourceError
from xenvirtio.lab.load import parse_result

LINE = (
    '{"mode": "verify", "depth": 4, "block_bytes": 4096, "requests": 10, "reads": 4, "writes": 6, "swept": 5, '
    '"seconds": 0.5, "iops": 20.0, "mib_per_s": 0.08, "p50_us": 9000, "p99_us": 9900, "max_us": 9999, "errors": 0, '
    '"mismatches": 0}'
)


def test_the_result_is_found_among_other_lines() -> None:
    result = parse_result(f"blkbench: something\n{LINE}\n0\n")
    assert (result.requests, result.swept, result.iops, result.mismatches) == (10, 5, 20.0, 0)


def test_no_result_is_an_error_with_what_was_said() -> None:
    with pytest.raises(ResourceError, match="No such file"):
        parse_result("blkbench: /dev/vdb: No such file or directory\n")
