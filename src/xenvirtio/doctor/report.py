"""The findings as people and as programs read them."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from dataclasses import asdict

from xenvirtio.doctor.finding import Finding, Status
from xenvirtio.doctor.machine import DomainKind, Machine

STATUS_WIDTH = max(len(status) for status in Status)


def is_fine(findings: Sequence[Finding]) -> bool:
    """Can `serve` work here?"""
    return all(finding.status is not Status.MISSING for finding in findings)


def summary(machine: Machine, findings: Sequence[Finding]) -> str:
    """Return the first line: what this machine is good for."""
    lacking = [finding.name for finding in findings if finding.status is Status.MISSING]
    if machine.domain_kind is DomainKind.NO_XEN:
        others = [name for name in lacking if name != "xen"]
        also = f" Apart from Xen, missing: {', '.join(others)}." if others else ""
        return (
            "This machine does not run on Xen, so `xenvirtio serve` has no guests here. What works without Xen:"
            " `xenvirtio demo` (an emulated Xen host) and `xenvirtio lab` (real Xen in QEMU); later the same devices"
            f" over vhost-user.{also}"
        )
    where = f"Xen {machine.xen_version or '(version not readable)'}, {machine.domain_kind.value}"
    if lacking:
        things = "1 thing" if len(lacking) == 1 else f"{len(lacking)} things"
        return f"{where}: {things} missing for `xenvirtio serve`: {', '.join(lacking)}."
    untried = any(finding.name == "ioreq" and finding.status is Status.SKIPPED for finding in findings)
    but = " But for IOREQ servers, which only a try shows: --guest NAME." if untried else ""
    return f"{where}: everything that `xenvirtio serve` needs is here.{but}"


def as_json(machine: Machine, findings: Sequence[Finding]) -> str:
    document = {
        "ok": is_fine(findings),
        "summary": summary(machine, findings),
        "checks": [asdict(finding) for finding in findings],
    }
    return json.dumps(document, indent=2)


def as_text(machine: Machine, findings: Sequence[Finding], width: int) -> str:
    """Lay it out: a line per check; meaning and remedy below those that need them."""
    name_width = max(len(finding.name) for finding in findings)
    lines = [*textwrap.wrap(summary(machine, findings), width), ""]
    for finding in findings:
        head = f"{finding.status:<{STATUS_WIDTH}}  {finding.name:<{name_width}}  "
        lines += _wrap(head, finding.found, width)
        if finding.status is not Status.OK:
            margin = " " * (STATUS_WIDTH + 4)
            for label, text in (("means:  ", finding.meaning), ("get it: ", finding.remedy)):
                if text.strip():
                    lines += _wrap(margin + label, text, width)
    return "\n".join(lines)


def _wrap(head: str, text: str, width: int) -> list[str]:
    """Wrap `text` beside `head`. Long words stay whole: they are paths and commands to copy."""
    return textwrap.wrap(
        text,
        max(width, len(head) + 30),
        initial_indent=head,
        subsequent_indent=" " * len(head),
        break_long_words=False,
        break_on_hyphens=False,
    )
