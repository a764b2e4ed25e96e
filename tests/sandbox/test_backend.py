from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.sandbox.rig import open_rig
from xenvirtio.errors import ResourceError


def test_a_backend_that_does_not_start_is_reported_with_its_last_words(tmp_path: Path) -> None:
    with open_rig(tmp_path, start=False) as rig:
        assert rig.backend.has_ended
        with pytest.raises(ResourceError, match="no backend was started"):
            rig.backend.kill()
        rig.toml.write_text("nonsense")
        with pytest.raises(ResourceError, match=r"did not say 'ready'; its last words: xenvirtio: .*not TOML"):
            rig.backend.start()


def test_start_kill_start_terminate(tmp_path: Path) -> None:
    with open_rig(tmp_path) as rig:
        first = rig.backend.pid
        rig.backend.kill()
        assert rig.backend.has_ended
        rig.backend.start()
        assert rig.backend.pid != first
        os.kill(rig.backend.pid, 0)
        assert rig.backend.terminate() == 0
        assert [line["message"] for line in rig.backend.log()].count("ready") == 2
