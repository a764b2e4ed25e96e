"""`xenvirtio static check`: read a description, print what is wrong with it."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from xenvirtio.cli.static_host import host_reader
from xenvirtio.static.check import Finding, Severity, check
from xenvirtio.static.description_loader import load_description
from xenvirtio.static.host_map import place_modules
from xenvirtio.static.resolve import resolve
from xenvirtio.static.span import Span
from xenvirtio.static.system import System

STYLES = {Severity.ERROR: "bold red", Severity.WARNING: "yellow", Severity.NOTE: "cyan"}


def run(options: argparse.Namespace) -> int:
    system = resolve(load_description(options.file, host_reader([options.file.parent])))
    findings = check(system, modules_beside(system, options.file.parent))
    if options.format == "json":
        print(as_json(system, findings))
    else:
        _print(system, findings)
    return 1 if any(_fails(finding, strict=options.strict) for finding in findings) else 0


def _fails(finding: Finding, *, strict: bool) -> bool:
    return finding.severity is Severity.ERROR or (strict and finding.severity is Severity.WARNING)


def modules_beside(system: System, folder: Path) -> dict[str, Span]:
    """Place the kernels and ramdisks as they lie in `folder`; nothing while one of them is missing."""
    names = [name for domain in system.domains for name in (domain.kernel, domain.ramdisk) if name is not None]
    try:
        return place_modules(system.description, {name: (folder / name).stat().st_size for name in names})
    except (OSError, ValueError):  # ValueError: a name that no file system takes
        return {}


def as_json(system: System, findings: Sequence[Finding]) -> str:
    document = {
        "ok": not any(_fails(finding, strict=False) for finding in findings),
        "system": system.description.name,
        "generation": system.generation,
        "findings": [
            {
                "severity": finding.severity.value,
                "rule": finding.rule,
                "place": finding.place,
                "other": finding.other,
                "message": finding.message,
            }
            for finding in findings
        ],
    }
    return json.dumps(document, indent=2)


def _print(system: System, findings: Sequence[Finding]) -> None:
    source = system.description.source
    for finding in findings:
        print_finding(finding, source)
    print(summary(system, findings))


def summary(system: System, findings: Sequence[Finding]) -> str:
    counts = {severity: sum(finding.severity is severity for finding in findings) for severity in Severity}
    found = ", ".join(f"{count} {severity.value}{'s' * (count != 1)}" for severity, count in counts.items() if count)
    parts = (
        (system.domains, "domain"),
        (system.regions, "shared region"),
        (system.channels, "event channel"),
        (system.devices, "device"),
    )
    what = ", ".join(f"{len(things)} {name}{'s' * (len(things) != 1)}" for things, name in parts if things)
    return f"{system.description.name}: {what}, for Xen {system.description.xen}: {found or 'nothing found wrong'}"


def print_finding(finding: Finding, source: str) -> None:
    """One line, whatever the width of the terminal: it is there to be searched for."""
    if sys.stdout.isatty():
        try:
            from rich.console import Console
            from rich.text import Text
        except ImportError:
            pass
        else:
            text = Text.assemble(
                (finding.severity.value, STYLES[finding.severity]),
                f": {source}: ",
                (finding.place, "bold"),
                " and ",
                (finding.other, "bold"),
                f": {finding.message}",
            )
            Console().print(text, soft_wrap=True)
            return
    print(f"{finding.severity.value}: {source}: {finding}")
