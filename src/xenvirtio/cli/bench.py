"""`xenvirtio bench`: measurements to repeat."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from xenvirtio.errors import ConfigurationError, UsageError

STORE_DESCRIPTION = """\
Measure what XenStore operations cost, beside few domains and beside many with all their watches.

Without --socket: our own server, in processes of its own, with unprivileged domains. With --socket, once for each of
several servers that run: all are measured in turn (A B A B) and compared with the first one. The nodes for it are made
under /xenvirtio-bench and removed afterwards; the rest of the store is not touched.
"""

STORE_EPILOG = """\
examples:
  xenvirtio bench store
  xenvirtio bench store --socket c=/run/xenstored/socket --socket ours=/run/xs --domains 1,100
  xenvirtio bench store --fairness
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    bench = subparsers.add_parser(
        "bench", help="measure, in a way that can be repeated", description="Measure, in a way that can be repeated."
    )
    commands = bench.add_subparsers(dest="bench_command", metavar="WHAT", required=True)
    store = commands.add_parser(
        "store",
        help="what XenStore operations cost",
        description=STORE_DESCRIPTION,
        epilog=STORE_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    store.add_argument(
        "--socket",
        action="append",
        default=[],
        metavar="[NAME=]PATH",
        help="a running server to be measured; may be given several times",
    )
    store.add_argument(
        "--carrier",
        choices=("socket", "ring"),
        default="socket",
        help="how the domains of our own server are connected; ring: as guests are, in shared memory; default: socket",
    )
    store.add_argument(
        "--domains", default="1,100,1000", metavar="N,N,...", help="how many domains; default: 1,100,1000"
    )
    store.add_argument("--rounds", type=int, default=5, metavar="N", help="medians of so many; default: 5")
    store.add_argument("--seconds", type=float, default=0.3, metavar="S", help="for each measurement; default: 0.3")
    store.add_argument("--fairness", action="store_true", help="how much a hostile domain slows another one down")
    store.add_argument(
        "--attackers", type=int, default=1, metavar="N", help="with --fairness: hostile domains at a time; default: 1"
    )
    store.add_argument("--format", choices=("text", "json"), default="text", help="default: text")
    store.set_defaults(run=_store)


def _store(options: argparse.Namespace) -> int:
    from xenvirtio.bench import store_bench, store_table
    from xenvirtio.bench.store_fairness import fairness_table, measure_fairness

    if options.rounds < 1 or options.seconds <= 0 or options.attackers < 1:
        raise UsageError("--rounds and --attackers take 1 or more, --seconds more than 0")
    if options.fairness:
        report = measure_fairness(options.attackers, options.rounds, options.seconds, _progress)
        print(json.dumps(report, indent=2) if options.format == "json" else fairness_table(report))
        return 0
    sizes = _sizes(options.domains)
    store_bench.raise_descriptor_limit()
    if options.socket:
        servers = [_named(text) for text in options.socket]
        report = store_bench.bench_servers(servers, sizes, options.rounds, options.seconds, _progress)
    else:
        rings = options.carrier == "ring"
        report = store_bench.bench_own(sizes, options.rounds, options.seconds, _progress, rings=rings)
    print(json.dumps(report, indent=2) if options.format == "json" else store_table.table_of(report))
    return 0


def _sizes(text: str) -> list[int]:
    words = text.split(",")
    if not all(word.isdecimal() and 1 <= int(word) <= 30000 for word in words):
        raise ConfigurationError("--domains", repr(text), "numbers from 1 to 30000, separated by commas")
    return sorted({int(word) for word in words})


def _named(text: str) -> tuple[str, Path]:
    name, separator, path = text.partition("=")
    return (name, Path(path)) if separator else (Path(text).name, Path(text))


def _progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
