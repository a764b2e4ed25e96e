"""Systems that `static check` refuses, built and booted all the same: Xen panics with the reason that check gives
beforehand, or dies without a word before its console is there, or does not notice and boots them.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from xenvirtio.cli.static_build import write_folder
from xenvirtio.cli.static_output import Inputs, assemble
from xenvirtio.errors import ResourceError
from xenvirtio.lab.artifacts.linux import build_linux
from xenvirtio.lab.built_system import BuiltSystem, read_built_system
from xenvirtio.lab.machine import Machine
from xenvirtio.lab.options import MachineOptions
from xenvirtio.lab.paths import cache_root
from xenvirtio.lab.qemu import dump_tree
from xenvirtio.lab.scenarios.machine_stage import MachineStage
from xenvirtio.lab.scenarios.registry import MachineScenario
from xenvirtio.static.check import Severity, check
from xenvirtio.static.description_loader import parse_description
from xenvirtio.static.resolve import resolve

SYSTEM = """
[system]
name = "broken"
xen = "4.20"
platform = "qemu-virt-gicv3"
xen_arguments = "console=dtuart noreboot"

[[domain]]
name = "a"
memory = "64MiB"
kernel = "Image"

[[domain]]
name = "b"
memory = "64MiB"
kernel = "Image"

[[region]]
id = "r0"
size = "1MiB"
host = 0xb0000000
guests = { a = 0x50000000, b = 0x60000000 }

[[region]]
id = "r1"
size = "1MiB"
host = 0xb1000000
guests = { a = 0x50100000, b = 0x60100000 }

[[channel]]
name = "c0"
ends = { a = 10, b = 11 }
"""

B = 'name = "b"\n'
STATIC = 'static_memory = [{ address = 0xc0000000, size = "64MiB" }]\n'
STARTED = r"Freed \d+kB init memory"
"""What Xen says when all domains are built."""
SILENT = ""
"""Nothing: Xen reads these properties before it has a console."""
WORDS_TIMEOUT_S = 90.0
SILENCE_S = 25.0
"""A good system says its first word within 2 s, on a busy machine within some 10."""


@dataclass(frozen=True, slots=True)
class Broken:
    """A change of `SYSTEM`, the rule that refuses it (None: good), and what Xen says to it."""

    what: str
    old: str
    new: str
    rule: str | None
    xen: str


SYSTEMS = (
    Broken("nothing", "", "", None, STARTED),
    Broken(
        "static memory's sum", B, B + STATIC.replace("64MiB", "32MiB"), "static-memory-sum", "match up with the sum"
    ),
    Broken("direct-map alone", B, B + "direct_map = true\n", "direct-map", "not valid for domain b without static"),
    Broken("no direct map", B, B + "direct_map = true\n" + STATIC, "direct-map", "are not direct-mapped"),
    Broken("XenStore", B, B + 'enhanced = "enabled"\n', "xenstore-absent", "(?i)Panic.*xenstore"),
    Broken("port 1024", "a = 10", "a = 1024", "port-range", "Could not set up domains evtchn"),
    Broken("too much memory", B + 'memory = "64MiB"', B + 'memory = "4GiB"', "host-memory-sum", "Failed to allocate"),
    Broken("regions on the host", "0xb1000000", "0xb0080000", "host-overlap", SILENT),
    Broken("region outside of RAM", "0xb1000000", "0x10000000", "host-memory", SILENT),
    Broken("part of a page", 'size = "1MiB"', "size = 0x100200", "alignment", SILENT),
    Broken("a long name", '"r0"', '"sixteen-letters-"', "shm-id-length", SILENT),
    Broken("regions in a guest", "0x50100000", "0x50080000", "guest-overlap", STARTED),
    Broken("region in RAM", "0x50100000", "0x43000000", "guest-overlap", STARTED),
)


def run(stage: MachineStage) -> dict[str, Any]:
    """Boot each of them."""
    options, said = MachineOptions(), {}
    for system in SYSTEMS:
        rules = errors_of(text_of(system))
        if rules[:1] != ([system.rule] if system.rule else []):
            raise ResourceError(f"{system.what}: static check finds {rules}, not {system.rule}")
        machine = stage.start(replace(options, system=_build(system, options)), "own")
        try:
            said[system.what] = _wait_words(machine, system)
        finally:
            machine.stop(at_once=True)
    return {"said": said}


def text_of(system: Broken) -> str:
    return SYSTEM.replace(system.old, system.new, 1) if system.old else SYSTEM


def errors_of(text: str) -> list[str]:
    """The rules that `static check` finds broken."""
    found = check(resolve(parse_description(text)))
    return [finding.rule for finding in found if finding.severity is Severity.ERROR]


def _build(system: Broken, options: MachineOptions) -> BuiltSystem:
    """What `static build` would write, had it not checked."""
    folder = cache_root() / "systems" / "broken"
    folder.mkdir(parents=True, exist_ok=True)
    tree = folder / "qemu.dtb"
    dump_tree(options, tree, folder / "dump.log")
    inputs = Inputs("system.toml", [build_linux().parent])
    output = assemble(resolve(parse_description(text_of(system))), inputs, tree, lambda line: None)
    write_folder(folder / "out", output)
    return read_built_system(folder / "out")


def _wait_words(machine: Machine, system: Broken) -> str:
    """Wait for what Xen is to say, and give that line; or see that it says nothing for a while."""
    deadline = time.monotonic() + (WORDS_TIMEOUT_S if system.xen else SILENCE_S)
    while time.monotonic() < deadline:
        text = _serial(machine.serial_log)
        if system.xen == SILENT and text.strip():
            raise ResourceError(f"{system.what}: Xen was to die without a word and said {text.strip()[:200]!r}")
        found = re.search(system.xen, text, re.DOTALL) if system.xen else None
        if found:
            return next(line for line in text[: found.end()].splitlines()[::-1] if line.strip())
        if not machine.is_running():
            break
        time.sleep(0.2)
    if system.xen:
        raise ResourceError(
            f"{system.what}: Xen was to say {system.xen!r}; last: {_serial(machine.serial_log)[-500:]!r}"
        )
    return "nothing"


def _serial(log: Path) -> str:
    return log.read_text(errors="replace") if log.exists() else ""


SCENARIO = MachineScenario(
    "broken-systems", "what static check refuses kills Xen as it says, silently, or unnoticed; on real Xen", run
)
