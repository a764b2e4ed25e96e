"""What is wrong with a system: one line that names both places, what was found and what to do."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Severity(Enum):
    ERROR = "error"
    """Xen refuses it, panics, or two parts destroy each other."""
    WARNING = "warning"
    """Works under conditions that the line names."""
    NOTE = "note"


@dataclass(frozen=True, slots=True)
class Finding:
    """`place` and `other` are what contradict each other: places in the description, or of Xen and the host."""

    severity: Severity
    rule: str
    place: str
    other: str
    message: str

    def __str__(self) -> str:
        return f"{self.place} and {self.other}: {self.message}"


def error(rule: str, place: str, other: str, message: str) -> Finding:
    return Finding(Severity.ERROR, rule, place, other, message)


def warning(rule: str, place: str, other: str, message: str) -> Finding:
    return Finding(Severity.WARNING, rule, place, other, message)


def note(rule: str, place: str, other: str, message: str) -> Finding:
    return Finding(Severity.NOTE, rule, place, other, message)
