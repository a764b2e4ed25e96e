from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.sandbox.rig import Rig, open_rig


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with open_rig(tmp_path) as rig:
        yield rig


@pytest.fixture(params=[False, True], ids=["foreign", "grants"])
def grants(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)
