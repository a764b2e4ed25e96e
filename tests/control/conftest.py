from __future__ import annotations

import logging

import pytest


@pytest.fixture(autouse=True)
def everything_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """A log call that nobody makes is one that may fail."""
    caplog.set_level(logging.DEBUG, "xenvirtio")
