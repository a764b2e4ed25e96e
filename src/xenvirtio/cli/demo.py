"""`xenvirtio demo`: the main job on an emulated Xen host, every byte verified."""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from xenvirtio._engine_choice import describe_engine
from xenvirtio.errors import ConfigurationError
from xenvirtio.sandbox.demonstration import Chapter, Demonstration, DeviceReport, Report

DESCRIPTION = """\
Show the main job on a machine without Xen: `xenvirtio serve` runs as a process of its own against a Xen host emulated
in memory, and serves the disks of three guests, by foreign mapping and by grants. The guests read, write, flush and
discard; one reboots, one crashes with writes in flight, and the backend is killed with -9 under load and replaced. In
the end every byte of every disk is verified, by the guests and in the image files.
"""

EPILOG = "Exit codes: 0 everything was verified, 1 it was not, 2 wrong usage."

MIB = 1 << 20
LOAD_SECONDS = 5.0
LOAD_SECONDS_MAX = 3600.0
DISK_BYTES = 16 * MIB
KILLS = 3

COLUMNS = ("type", "guest", "disk", "memory", "requests", "verified", "what happened", "verdict")


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "demo",
        help="the main job on an emulated Xen host, every byte verified",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--seconds",
        type=_seconds,
        default=LOAD_SECONDS,
        metavar="S",
        help=f"how long the guests are under load (default: {LOAD_SECONDS:g}); starting and verifying come on top",
    )
    parser.add_argument("--seed", type=int, default=1, help="of the guests' random requests (default: 1)")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="a new directory for images and log, which stays")
    parser.add_argument(
        "--format", choices=("text", "json"), default="text", help="json: one object on standard output (default: text)"
    )
    parser.set_defaults(run=run)


def _seconds(text: str) -> float:
    seconds = float(text)
    if not (math.isfinite(seconds) and 0 < seconds <= LOAD_SECONDS_MAX):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds up to {LOAD_SECONDS_MAX:g}")
    return seconds


def run(options: argparse.Namespace) -> int:
    with _directory(options.keep) as directory:
        demonstration = Demonstration(
            directory,
            seconds=options.seconds,
            disk_bytes=DISK_BYTES,
            kills=KILLS,
            seed=options.seed,
            tell=_teller(),
        )
        report = demonstration.run()
    if options.format == "json":
        print(json.dumps(as_json(report), indent=2))
    else:
        _print_table(report)
        print(verdict(report))
        if not report.ok and options.keep is None:
            print("`xenvirtio demo --keep DIR` leaves the images and the backend's log to look at", file=sys.stderr)
    return 0 if report.ok else 1


@contextmanager
def _directory(keep: Path | None) -> Iterator[Path]:
    if keep is None:
        with tempfile.TemporaryDirectory(prefix="xenvirtio-demo-") as name:
            yield Path(name)
        return
    try:
        keep.mkdir(parents=True)
    except OSError as error:
        raise ConfigurationError(f"--keep {keep}", error.strerror or str(error), "name a new directory") from error
    yield keep.resolve()


def as_json(report: Report) -> dict[str, Any]:
    return {
        "ok": report.ok,
        "engine": describe_engine(),
        "seconds": round(report.seconds, 3),
        "backend_kills": report.backend_kills,
        "problems": report.problems,
        "devices": [{**asdict(device), "verified": device.verified} for device in report.devices],
    }


def verdict(report: Report) -> str:
    """One line."""
    problems = [*report.problems, *(problem for device in report.devices for problem in device.problems)]
    if report.ok:
        total = sum(device.bytes_verified for device in report.devices) / MIB
        return f"ok: every byte verified, {total:.0f} MiB in all, {report.seconds:.1f} s, {describe_engine()}"
    first = problems[0] if problems else "a disk was not verified to its end"
    return f"FAILED: {first}" + (f" (and {len(problems) - 1} more, see --format json)" if len(problems) > 1 else "")


def _row(device: DeviceReport) -> tuple[str, ...]:
    return (
        device.type,
        device.guest,
        device.disk,
        device.memory,
        str(device.requests),
        f"{device.bytes_verified / MIB:.0f} MiB",
        ", ".join(device.events),
        "ok" if device.verified else "WRONG",
    )


def _print_table(report: Report) -> None:
    rows = [_row(device) for device in report.devices]
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        widths = [max(map(len, column)) for column in zip(COLUMNS, *rows, strict=True)]
        for row in (COLUMNS, *rows):
            print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in COLUMNS:
        table.add_column(column, justify="right" if column in ("requests", "verified") else "left")
    for device, row in zip(report.devices, rows, strict=True):
        table.add_row(*row, style=None if device.verified else "bold red")
    Console().print(table)


def _teller() -> Callable[[Chapter, str], None]:
    """Return what prints a line of progress on standard error."""
    try:
        from rich.console import Console
    except ImportError:

        def tell(chapter: Chapter, text: str) -> None:
            print(f"{chapter.value + ':':<24}{text}", file=sys.stderr, flush=True)

        return tell
    console = Console(stderr=True, highlight=False)

    def tell_richly(chapter: Chapter, text: str) -> None:
        console.print(f"[bold cyan]{chapter.value + ':':<24}[/]{text}", soft_wrap=True)

    return tell_richly
