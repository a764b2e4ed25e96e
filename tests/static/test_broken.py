"""What each broken description gives, word for word, here and in docs/static.md."""

from __future__ import annotations

import pytest

from tests.static.broken import BEGIN, CASES, DOCUMENT, END, GOOD, Broken, first_line, table


def test_the_description_that_the_broken_ones_change_is_good() -> None:
    assert first_line(GOOD) == ""


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.what.replace(" ", "-"))
def test_a_broken_description_gives_its_line(case: Broken) -> None:
    assert first_line(case.text) == case.line


def test_the_document_has_the_table_as_it_is() -> None:
    shown = DOCUMENT.read_text().partition(BEGIN)[2].partition(END)[0]
    assert shown == table(), "run tools/static_document.py"
