"""Statements about the split ring that do not apply to this package, each with its reason. None so far."""

from __future__ import annotations

SPLIT: dict[str, str] = {}
