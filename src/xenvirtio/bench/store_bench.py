"""The measurement of XenStore servers: what each operation costs beside few and many domains, and who is faster.

What is compared is measured in turn (A B A B), so that a slow moment of the machine meets all; medians are reported.
"""

from __future__ import annotations

import resource
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from math import isnan
from pathlib import Path
from statistics import median
from typing import Any

from xenvirtio.bench.store_cases import CASES, Case, Sample, measure
from xenvirtio.bench.store_client import BenchClient, request
from xenvirtio.bench.store_population import WATCHES_PER_DOMAIN, Population
from xenvirtio.bench.store_server import ServerProcess
from xenvirtio.xenstore.wire import MessageType

ROOT = b"/xenvirtio-bench"
"""Where domains are played on a server that is not ours to fill: nobody looks there, and it is removed afterwards."""

COMPARED = ("us", "server_us", "fastest_us", "fastest_server_us")
"""Medians, and the fastest rounds: on a machine that does other work as well these are nearer to the truth."""

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Subject:
    """One thing to be measured: a server with so many domains."""

    server: str
    domains: int
    pid: int
    population: Population


def raise_descriptor_limit() -> None:
    """Allow as many open connections as the system lets us: a thousand domains are a thousand sockets."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def bench_own(
    sizes: Sequence[int], rounds: int, seconds: float, progress: Progress, *, rings: bool = False
) -> dict[str, Any]:
    """Measure a server of ours, beside each number of domains; each size has a process of its own."""
    with ExitStack() as stack:
        subjects = []
        for size in sizes:
            progress(f"{size} domains, {size * WATCHES_PER_DOMAIN} watches")
            server = stack.enter_context(ServerProcess(size, rings=rings))
            population = Population(server.control, lambda number: b"/local/domain/%d" % number, server.open, True)
            population.grow(size)
            subjects.append(Subject("xenvirtio", size, server.pid, population))
        rows = measure_in_turn(subjects, rounds, seconds, progress)
    return report_of(["xenvirtio"], sizes, rows, rounds, seconds)


def bench_servers(
    servers: Sequence[tuple[str, Path]], sizes: Sequence[int], rounds: int, seconds: float, progress: Progress
) -> dict[str, Any]:
    """Measure running servers (name and socket) side by side, beside each number of connections with watches.

    All connections are privileged, as those of a socket are.
    """
    rows = []
    with ExitStack() as stack:
        populations = []
        for name, path in servers:
            control = BenchClient.at(path)
            stack.callback(control.close)
            stack.callback(control.ask, request(MessageType.RM, ROOT + b"\0"))
            control.ask(request(MessageType.WRITE, ROOT + b"\0"))
            population = Population(control, lambda number: ROOT + b"/%d" % number, _opener(path), False)
            stack.callback(population.close)
            populations.append((name, control.server_pid(), population))
        for size in sizes:
            progress(f"{size} connections, {size * WATCHES_PER_DOMAIN} watches")
            for _, _, population in populations:
                population.grow(size)
            subjects = [Subject(name, size, pid, population) for name, pid, population in populations]
            rows += measure_in_turn(subjects, rounds, seconds, progress)
    return report_of([name for name, _ in servers], sizes, rows, rounds, seconds)


def _opener(path: Path) -> Callable[[int], BenchClient]:
    return lambda number: BenchClient.at(path)


def measure_in_turn(
    subjects: Sequence[Subject], rounds: int, seconds: float, progress: Progress
) -> list[dict[str, Any]]:
    """Return a row for each case and subject: medians of the rounds."""
    rows = []
    for case in CASES:
        samples: list[list[Sample]] = [[] for _ in subjects]
        for round_ in range(rounds + 1):
            for subject, found in zip(subjects, samples, strict=True):
                sample = _measure(case, subject, seconds if round_ else seconds / 4)
                if round_:  # the first one warms up
                    found.append(sample)
        for subject, found in zip(subjects, samples, strict=True):
            row = {
                "operation": case.name,
                "server": subject.server,
                "domains": subject.domains,
                "us": _rounded(median(sample.wall_us for sample in found)),
                "server_us": _rounded(median(sample.server_us for sample in found)),
                "fastest_us": _rounded(min(sample.wall_us for sample in found)),
                "fastest_server_us": _rounded(min(sample.server_us for sample in found)),
            }
            rows.append(row)
            progress(f"  {case.name:<28}{subject.server:<12}{subject.domains:>6} domains {row['us']:>9.1f} us")
    return rows


def _measure(case: Case, subject: Subject, seconds: float) -> Sample:
    population = subject.population
    return measure(case, population.clients[0], population.base(1), subject.pid, seconds)


def report_of(
    servers: Sequence[str], sizes: Sequence[int], rows: list[dict[str, Any]], rounds: int, seconds: float
) -> dict[str, Any]:
    """Put the rows together with what is made of them: growth with the number of domains, ratios of servers."""
    found = {(row["operation"], row["server"], row["domains"]): row for row in rows}
    growth, ratios = [], []
    for case in CASES:
        for server in servers:
            few, many = found[case.name, server, sizes[0]], found[case.name, server, sizes[-1]]
            grown = {key: _ratio(many[key], few[key]) for key in ("us", "server_us")}
            growth.append({"operation": case.name, "server": server, **grown})
        for server in servers[1:]:
            for size in sizes:
                first, other = found[case.name, servers[0], size], found[case.name, server, size]
                compared = {key: _ratio(other[key], first[key]) for key in COMPARED}
                ratios.append({"operation": case.name, "server": server, "to": servers[0], "domains": size, **compared})
    facts = {"rounds": rounds, "seconds": seconds, "watches_per_domain": WATCHES_PER_DOMAIN}
    return {"ok": True, **facts, "rows": rows, "growth": growth, "ratios": ratios}


def _rounded(value: float) -> float | None:
    return None if isnan(value) else round(value, 2)


def _ratio(one: float | None, other: float | None) -> float | None:
    return round(one / other, 2) if one is not None and other else None
