"""What a probe found out: the values between the child process and the checks."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that was tried: `error` is its errno, 0 when it worked; `value` is text it brought."""

    name: str
    error: int = 0
    value: str = ""

    @property
    def worked(self) -> bool:
        return self.error == 0

    @property
    def reason(self) -> str:
        return f"{errno.errorcode.get(self.error, self.error)} ({os.strerror(self.error)})"

    def encode(self) -> str:
        return json.dumps(asdict(self))


@dataclass(frozen=True, slots=True)
class Answers:
    """The steps of a probe, in order. With `hung` the step after the last one never ended."""

    steps: dict[str, Step] = field(default_factory=dict)
    hung: bool = False
    complaint: str = ""
    """What a probe that failed as a program printed last."""

    @classmethod
    def of(cls, *steps: Step, hung: bool = False) -> Answers:
        return cls({step.name: step for step in steps}, hung)

    @classmethod
    def parse(cls, lines: Iterable[str], *, hung: bool = False) -> Answers:
        """Read what a probe printed; other lines than steps are complaints of Python's."""
        complaint = ""
        steps = {}
        for line in lines:
            try:
                step = Step(**json.loads(line))
            except (ValueError, TypeError):
                complaint = line.strip() or complaint
            else:
                steps[step.name] = step
        return cls(steps, hung, complaint)

    def get(self, name: str) -> Step | None:
        return self.steps.get(name)

    def worked(self, name: str) -> bool:
        step = self.steps.get(name)
        return step is not None and step.worked

    def value(self, name: str) -> str | None:
        """What a step that worked brought."""
        step = self.steps.get(name)
        return step.value if step is not None and step.worked else None

    def failed(self, name: str, *errors: int) -> bool:
        """Did the step fail, with one of `errors` when some are given?"""
        step = self.steps.get(name)
        return step is not None and not step.worked and (not errors or step.error in errors)

    def __iter__(self) -> Iterator[Step]:
        return iter(self.steps.values())
