#!/usr/bin/env python3
"""Write what docs/static.md shows and is generated: the table of broken descriptions, and the picture of an example.

The tests compare both with what this would write.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

from tests.static.broken import BEGIN, DOCUMENT, END, table  # noqa: E402
from tests.static.test_show import PICTURE, picture  # noqa: E402


def main() -> None:
    before, _, rest = DOCUMENT.read_text().partition(BEGIN)
    DOCUMENT.write_text(before + BEGIN + table() + END + rest.partition(END)[2])
    PICTURE.write_text(picture())


if __name__ == "__main__":
    main()
