"""What a check says."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Status(StrEnum):
    """`missing` is what makes serve impossible; `warning` costs speed or some guests."""

    OK = "ok"
    WARNING = "warning"
    MISSING = "missing"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report; `meaning` and `remedy` where there is something to do."""

    name: str
    status: Status
    found: str
    meaning: str = ""
    remedy: str = ""


def ok(name: str, found: str, meaning: str = "") -> Finding:
    return Finding(name, Status.OK, found, meaning)


def warning(name: str, found: str, meaning: str, remedy: str) -> Finding:
    return Finding(name, Status.WARNING, found, meaning, remedy)


def missing(name: str, found: str, meaning: str, remedy: str) -> Finding:
    return Finding(name, Status.MISSING, found, meaning, remedy)


def skipped(name: str, found: str, meaning: str = "", remedy: str = "") -> Finding:
    return Finding(name, Status.SKIPPED, found, meaning, remedy)
