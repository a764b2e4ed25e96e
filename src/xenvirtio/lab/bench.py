"""Measures a served disk on real Xen: both memory modes side by side, and where a request's time goes.

Two guests run, one in each memory mode; they are measured in turn (foreign, grant, foreign, ...) while the other one
is idle, so that a slow moment of the host meets both. Figures of an emulated processor say nothing of real hardware:
only ratios within one run do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from xenvirtio.errors import ResourceError
from xenvirtio.ids import DomId
from xenvirtio.lab.backend import Backend, ProcessTime
from xenvirtio.lab.dom0 import Dom0
from xenvirtio.lab.load import LoadResult, run_load
from xenvirtio.lab.machine import Machine
from xenvirtio.lab.toolstack import Disk, Guest, GuestConfig, MemoryMode, Toolstack

DISK_MIB = 64
WARM_UP_S = 2
KIB, MIB = 1 << 10, 1 << 20


@dataclass(frozen=True, slots=True)
class Row:
    """One kind of load. `unit` names the field of blkbench's result that counts."""

    name: str
    arguments: str
    unit: str
    reference: float | None = None


ROWS = (
    Row("4 KiB random read, depth 1", "read /dev/vda -b 4096 -d 1", "iops", 138),
    Row("4 KiB random read, depth 16", "read /dev/vda -b 4096 -d 16", "iops"),
    Row("4 KiB random write, depth 1", "write /dev/vda -b 4096 -d 1", "iops"),
    Row("4 KiB random write, depth 16", "write /dev/vda -b 4096 -d 16", "iops"),
    Row("1 MiB sequential read", "seqread /dev/vda -d 1", "mib_per_s", 7.3),
    Row("1 MiB sequential write", "seqwrite /dev/vda -d 1", "mib_per_s"),
)
"""All by O_DIRECT. `reference`: the C backend that people use today, in grant mode (../shared/lab-notes.md)."""

REFERENCE_NOTE = (
    "reference: the C backend in grant mode in another run of the same kind of lab (138 reads/s of 4 KiB at depth 1, "
    "7.3 MiB/s at 1 MiB); only figures of one and the same lab and run can really be compared"
)

PUMP = ("accesses", "kicks", "wakeups")
DEVICE = ("requests", "batches", "interrupts", "grant_calls", "grant_segments")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything that is counted, at one moment."""

    counts: dict[str, int]
    daemon: ProcessTime
    cpu_s: dict[DomId, float]


def counts_of(counters: dict[str, Any], guest: str) -> dict[str, int]:
    """The daemon's counters of one guest, its devices added up, by the names in `PUMP` and `DEVICE`."""
    entry = counters.get(guest)
    if entry is None:
        raise ResourceError(f"the daemon counts nothing for guest {guest}")
    counts = {name: int(entry["pump"][name]) for name in PUMP}
    for name in DEVICE:
        counts[name] = sum(int(device[name]) for device in entry["devices"].values())
    return counts


def per_request(before: Snapshot, after: Snapshot, guest: DomId) -> dict[str, float]:
    """What one request cost between two snapshots: counts, and processor time in microseconds."""
    counts = {name: after.counts[name] - before.counts[name] for name in (*PUMP, *DEVICE)}
    requests = counts.pop("requests")
    if requests <= 0:
        raise ResourceError("the daemon counted no request during a measurement")
    seconds = {
        "daemon_user_us": after.daemon.user_s - before.daemon.user_s,
        "daemon_system_us": after.daemon.system_s - before.daemon.system_s,
        "guest_us": after.cpu_s[guest] - before.cpu_s[guest],
        "dom0_us": after.cpu_s[DomId(0)] - before.cpu_s[DomId(0)],
    }
    costs = {name: round(count / requests, 3) for name, count in counts.items()}
    return costs | {name: round(value * 1e6 / requests, 1) for name, value in seconds.items()}


def summarize(values: Sequence[float]) -> dict[str, float]:
    """Median, and half the distance between the extremes as a share of it."""
    middle = median(values)
    spread = (max(values) - min(values)) / 2 / middle if middle else 0.0
    return {"median": round(middle, 1), "spread": round(spread, 3)}


class Bench:
    """A machine with a daemon and two guests, ready to be measured."""

    def __init__(self, machine: Machine, progress: Callable[[str], None]) -> None:
        self._dom0: Dom0 = machine.dom0()
        self._toolstack = Toolstack(self._dom0)
        self._progress = progress
        self._backend = Backend(self._dom0, "bench")
        self._guests: dict[MemoryMode, Guest] = {}

    def run(self, seconds: float, rounds: int) -> dict[str, Any]:
        """Measure every row `rounds` times in each mode, `seconds` each; a JSON-ready value."""
        self._set_up()
        try:
            return self._measure_all(seconds, rounds)
        finally:
            self._tear_down()

    def _set_up(self) -> None:
        self._backend.start()
        for mode in MemoryMode:
            name = mode.name.lower()
            path = f"/srv/lab/bench-{name}.img"
            self._toolstack.make_disk(path, DISK_MIB)
            # Real blocks, and all of them in dom0's page cache: the disk below is not what is measured.
            self._dom0.run(f"dd if=/dev/zero of={path} bs=1M count={DISK_MIB} 2>/dev/null; cat {path} >/dev/null", 300)
            config = GuestConfig(f"bench-{name}", disks=(Disk(path, mode=mode),))
            self._guests[mode] = self._toolstack.create(config)
        for guest in self._guests.values():
            # The first accesses map memory, fill caches and make the emulator translate code.
            run_load(guest, f"read /dev/vda -d 16 -t {WARM_UP_S}")
            run_load(guest, f"seqwrite /dev/vda -d 1 -t {WARM_UP_S}")

    def _tear_down(self) -> None:
        for guest in self._guests.values():
            guest.destroy()
        self._backend.stop()

    def _measure_all(self, seconds: float, rounds: int) -> dict[str, Any]:
        rows = []
        for row in ROWS:
            results: dict[MemoryMode, list[LoadResult]] = {mode: [] for mode in MemoryMode}
            costs: dict[MemoryMode, list[dict[str, float]]] = {mode: [] for mode in MemoryMode}
            for round_ in range(rounds):
                for mode in MemoryMode:
                    result, cost = self._measure(mode, f"{row.arguments} -t {seconds} -s {round_ + 1}", seconds)
                    results[mode].append(result)
                    costs[mode].append(cost)
            modes = {}
            for mode in MemoryMode:
                figures = summarize([float(getattr(result, row.unit)) for result in results[mode]])
                latency = median(result.p50_us for result in results[mode])
                cost = {name: round(median(one[name] for one in costs[mode]), 3) for name in costs[mode][0]}
                modes[mode.name.lower()] = {**figures, "p50_us": latency, "per_request": cost}
            entry = {"name": row.name, "unit": row.unit, "reference": row.reference, "modes": modes}
            self._progress(line_of(entry))
            rows.append(entry)
        return {"ok": True, "seconds": seconds, "rounds": rounds, "note": REFERENCE_NOTE, "rows": rows}

    def _measure(self, mode: MemoryMode, arguments: str, seconds: float) -> tuple[LoadResult, dict[str, float]]:
        guest = self._guests[mode]
        before = self._snapshot(guest)
        result = run_load(guest, arguments, seconds + 240)
        after = self._snapshot(guest)
        return result, per_request(before, after, guest.domid)

    def _snapshot(self, guest: Guest) -> Snapshot:
        counts = counts_of(self._backend.counters(), guest.name)
        cpu_s = {row.domid: row.cpu_s for row in self._toolstack.domains()}
        return Snapshot(counts, self._backend.time(), cpu_s)


def line_of(row: dict[str, Any]) -> str:
    """One row for people."""
    unit = {"iops": "requests/s", "mib_per_s": "MiB/s"}[row["unit"]]
    parts = [f"{row['name']:<30}"]
    for mode, figures in row["modes"].items():
        parts.append(f"{mode} {figures['median']:>8.1f} +-{figures['spread'] * 100:.0f}%")
    reference = f"  (reference {row['reference']:g})" if row["reference"] is not None else ""
    return "  ".join(parts) + f"  {unit}{reference}"


COST_NAMES = {
    "accesses": "MMIO exits",
    "wakeups": "pump wake-ups",
    "kicks": "doorbells",
    "batches": "batches",
    "interrupts": "interrupts",
    "grant_calls": "grant hypercalls",
    "grant_segments": "grant segments",
    "daemon_user_us": "daemon, user (us)",
    "daemon_system_us": "daemon, system (us)",
    "guest_us": "guest's processor (us)",
    "dom0_us": "dom0's processors (us)",
}


def table_of(report: dict[str, Any]) -> str:
    """The whole report for people: rates, then what one request costs."""
    lines = [line_of(row) for row in report["rows"]]
    columns = [(row, mode) for row in report["rows"] for mode in row["modes"]]
    lines += ["", "per request as the device sees it, which may be a part of what the program asked for (medians):"]
    numbers = {id(row): f"[{number}]" for number, row in enumerate(report["rows"], 1)}
    lines += [f"  {numbers[id(row)]} {row['name']}" for row in report["rows"]]
    lines.append(f"{'':<24}" + "".join(f"{numbers[id(row)] + ' ' + mode:>12}" for row, mode in columns))
    for key, name in COST_NAMES.items():
        values = [row["modes"][mode]["per_request"][key] for row, mode in columns]
        lines.append(f"{name:<24}" + "".join(f"{value:>12.2f}" for value in values))
    return "\n".join([*lines, "", report["note"]])
