"""The systems of the scenario are refused by the rule it says, before any of them is booted."""

from __future__ import annotations

import pytest

from xenvirtio.lab.scenarios.broken_systems import SYSTEMS, Broken, errors_of, text_of


@pytest.mark.parametrize("system", SYSTEMS, ids=lambda system: system.what)
def test_check_refuses_it_by_that_rule(system: Broken) -> None:
    assert errors_of(text_of(system))[:1] == ([system.rule] if system.rule else [])
