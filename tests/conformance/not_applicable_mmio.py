"""Statements about the MMIO transport that do not apply, each with the reason."""

from __future__ import annotations

MMIO: dict[str, str] = {}
