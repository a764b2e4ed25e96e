"""Numbers on the command line: decimal or 0x..., and bounded."""

from __future__ import annotations

import argparse
from collections.abc import Callable

DOMID_MAX = 0x7FEF


def whole_number(low: int, high: int) -> Callable[[str], int]:
    """Return an argument type that takes whole numbers from `low` to `high`, and says so when it does not."""

    def parse(text: str) -> int:
        try:
            number = int(text, 0)
        except ValueError:
            number = low - 1
        if not low <= number <= high:
            raise argparse.ArgumentTypeError(f"found {text!r}, allowed: a number from {low} to {high}, also as 0x...")
        return number

    return parse


def domid(text: str) -> int:
    return whole_number(0, DOMID_MAX)(text)
