from __future__ import annotations

import pytest

from xenvirtio._build import ENGINE_MODULES
from xenvirtio.lab.artifacts.engine import declarations_of


@pytest.mark.parametrize("name", ENGINE_MODULES)
def test_a_module_is_compiled_with_its_own_declarations_and_not_with_all(name: str) -> None:
    names = [path.stem for path in declarations_of(name)]
    assert name.rpartition(".")[2] in names


def test_declarations_are_followed_through_others() -> None:
    names = {path.stem for path in declarations_of("xenvirtio.virtio.queue_runner")}
    # split.pxd, which queue_runner.pxd cimports, cimports transfer.pxd
    assert {"queue_runner", "split", "batch", "transfer", "raw", "guest_memory"} <= names
    assert "grants" not in names
