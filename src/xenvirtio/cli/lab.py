"""`xenvirtio lab`: real Xen under QEMU on this machine."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from xenvirtio.errors import UsageError

if TYPE_CHECKING:
    from xenvirtio.lab.machine import Machine
    from xenvirtio.lab.options import MachineOptions

PING_TIMEOUT_S = 60.0
"""How long dom0's agent may take to show that it is there; the emulated machine can be very slow."""

_DESCRIPTION = """\
Real Xen on this machine, without Xen, KVM or root.

QEMU emulates an Arm machine; Xen 4.20 with IOREQ servers, a Linux dom0 and Linux guests run on it, all built
from Debian's packages and kept in the cache folder ($XDG_CACHE_HOME/xenvirtio). dom0 has this working tree's
package in /opt/xenvirtio, its engine compiled. Nothing that a run writes to its disks is kept.
"""

_EXAMPLES = """\
examples:
  xenvirtio lab build             build what is missing: 10 to 15 minutes the first time
  xenvirtio lab up                boot; the machine goes on in the background
  xenvirtio lab shell             a root shell in dom0; Ctrl-] leaves it
  xenvirtio lab run 'xl list'     one command in dom0, its output and exit status
  xenvirtio lab up system.toml    a statically partitioned system, see 'xenvirtio static --help'
  xenvirtio lab test --only filesystem --mode grant
  xenvirtio lab down
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `lab` with its subcommands; each sets `run`, a function from the arguments to an exit status."""
    parser = subparsers.add_parser(
        "lab",
        help="boot real Xen in QEMU on this machine and test against it",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = parser.add_subparsers(title="actions", required=True, metavar="ACTION")

    build = actions.add_parser(
        "build",
        help="download and build Xen, Linux and the roots",
        description="Builds what is missing in the cache; does nothing when all is there. Missing programs of this"
        " machine are named together with their Debian packages.",
    )
    build.add_argument(
        "--install-tools", action="store_true", help="apt-get install missing programs first (needs root)"
    )
    _add_xen_source(build)
    build.set_defaults(run=_build)

    up = actions.add_parser(
        "up",
        help="boot the machine and leave it running",
        description="Builds what is missing, boots, waits for dom0. With SYSTEM, a description for 'xenvirtio static"
        " build' (or the folder that it wrote), boots that: dom0 beside dom0less domains. Files it may name without"
        " having them: Image, guest.cpio.gz, guest-python.cpio.gz.",
    )
    up.add_argument("system", nargs="?", type=Path, metavar="SYSTEM", help="system.toml, or a folder with boot.toml")
    _add_xen_source(up)
    _add_size(up)
    up.add_argument(
        "--xenstore",
        choices=("c", "ours", "none"),
        default="c",
        help="what dom0 starts: Debian's xenstored, `xenvirtio store serve --xen` in its place, or nothing of Xen's"
        " (default: c)",
    )
    up.add_argument(
        "--root",
        choices=("full", "light"),
        default="full",
        help="dom0's root: with Xen's tools, or without a single one of them (default: full)",
    )
    _add_name(up)
    up.set_defaults(run=_up)

    shell = actions.add_parser(
        "shell",
        help="dom0's shell on the serial console",
        description="Connects this terminal to the serial console; Ctrl-] leaves it, the machine goes on.",
    )
    shell.add_argument(
        "--domain", type=int, default=0, metavar="DOMID", help="type into the vpl011 of a dom0less domain instead"
    )
    _add_name(shell)
    shell.set_defaults(run=_shell)

    run = actions.add_parser(
        "run", help="run one command in dom0", description="Prints the command's output and ends with its exit status."
    )
    run.add_argument("command", help="a shell command, in quotes")
    run.add_argument("--timeout", type=float, default=600, metavar="SECONDS", help="kill it after that (default: 600)")
    _add_name(run)
    run.set_defaults(run=_run)

    test = actions.add_parser(
        "test",
        help="play the scenarios on real Xen",
        description="Plays scenarios on the running machine, or on one booted for them. Exit status 0 when all pass.",
    )
    test.add_argument("--list", action="store_true", help="list the scenarios and end")
    test.add_argument("--only", action="append", default=[], metavar="NAME", help="only this one; may be repeated")
    test.add_argument("--skip", action="append", default=[], metavar="NAME", help="not this one; may be repeated")
    _add_xen_source(test)
    test.add_argument("--mode", choices=("foreign", "grant"), help="only this memory mode (default: all that apply)")
    _add_format(test)
    _add_name(test)
    test.set_defaults(run=_test)

    bench = actions.add_parser(
        "bench",
        help="measure on real Xen",
        description="Measures 4 KiB random and 1 MiB sequential direct I/O in both memory modes in turn, and what a"
        " request costs in exits, wake-ups, hypercalls and processor time. With --store: our XenStore server beside C"
        " xenstored, both in dom0, in turn.",
    )
    bench.add_argument("--store", action="store_true", help="measure XenStore servers instead of a disk")
    bench.add_argument(
        "--domains", default="1,20,100", metavar="N,N,...", help="with --store: beside so many clients (1,20,100)"
    )
    bench.add_argument("--seconds", type=float, default=4, help="of one measurement (default: 4)")
    bench.add_argument("--rounds", type=int, default=3, help="measurements of each kind and mode (default: 3)")
    _add_format(bench)
    _add_name(bench)
    bench.set_defaults(run=_bench)

    down = actions.add_parser("down", help="switch the machine off", description="Switches the running machine off.")
    _add_name(down)
    down.add_argument("--all", action="store_true", help="every machine that runs")
    down.set_defaults(run=_down)

    clean = actions.add_parser(
        "clean",
        help="empty the cache",
        description="Stops the machine and removes everything that was built; --all also what was downloaded.",
    )
    clean.add_argument("--all", action="store_true", help="remove downloads as well")
    clean.set_defaults(run=_clean)


def _add_format(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--format", choices=("text", "json"), default="text", help="json: one object on standard output"
    )


def _add_name(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--name", default="default", metavar="NAME", help="of the machine (default: default)")


def _add_xen_source(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--xen-source",
        metavar="PATH",
        action=_SetXenSource,
        help="a source tree or tarball of Xen to build and boot instead of Debian's 4.20; $XENVIRTIO_XEN_SOURCE says"
        " the same for all commands. xl in dom0 stays that of 4.20 and works with no other version",
    )


class _SetXenSource(argparse.Action):
    """The option is the variable, set for this process."""

    def __call__(self, parser: object, namespace: object, values: object, option: str | None = None) -> None:
        from xenvirtio.lab.artifacts.xen_source import SOURCE_VARIABLE

        os.environ[SOURCE_VARIABLE] = str(values)


def _add_size(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--memory", type=int, default=3072, metavar="MIB", help="of the whole machine (default: 3072)")
    parser.add_argument("--xen-args", default="", metavar="TEXT", help="added to Xen's command line")
    parser.add_argument("--dom0-args", default="", metavar="TEXT", help="added to dom0's kernel command line")


def _progress(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def _build(arguments: argparse.Namespace) -> int:
    from xenvirtio.lab.build import build_all
    from xenvirtio.lab.host_tools import install_host_tools

    if arguments.install_tools:
        install_host_tools(_progress)
    build_all(_progress)
    return 0


def _up(arguments: argparse.Namespace) -> int:
    from xenvirtio.lab.boot import boot
    from xenvirtio.lab.options import Dom0Root, MachineOptions, XenStoreChoice

    options = MachineOptions(
        memory_mib=arguments.memory,
        xen_arguments=arguments.xen_args,
        linux_arguments=arguments.dom0_args,
        root=Dom0Root(arguments.root),
        xenstore=XenStoreChoice(arguments.xenstore),
    )
    if arguments.system is not None:
        options = _with_system(arguments, options)
    boot(options, arguments.name, _progress).close()
    if options.system is None or options.system.has_dom0():
        _progress("dom0 is up: 'xenvirtio lab shell', 'xenvirtio lab run COMMAND', 'xenvirtio lab down'")
    else:
        _progress("it boots, with no dom0 to wait for: 'xenvirtio lab shell --domain 1', 'xenvirtio lab down'")
    return 0


def _with_system(arguments: argparse.Namespace, options: MachineOptions) -> MachineOptions:
    """These options with what `static build` makes of the description, or made before into a folder.

    Raises:
        UsageError: an option is given that only the description can say.
    """
    from xenvirtio.lab.build import build_system_files
    from xenvirtio.lab.built_system import read_built_system
    from xenvirtio.lab.static_build import build_system

    for option, value in (
        ("--xen-args", arguments.xen_args),
        ("--dom0-args", arguments.dom0_args),
        ("--xenstore", arguments.xenstore != "c"),
    ):
        if value:
            raise UsageError(f"{option} does not go with a static system; put it into {arguments.system}")
    if arguments.system.is_dir():
        return replace(options, system=read_built_system(arguments.system))
    build_system_files(_progress)
    _progress(f"building the system of {arguments.system}")
    return replace(options, system=build_system(arguments.system, options, arguments.name))


def _running(name: str) -> Machine:
    from xenvirtio.lab import machine

    found = machine.find(name)
    if found is None:
        others = ", ".join(machine.running_names())
        why = f"no lab machine {name!r} runs" + (f" (--name: {others})" if others else "")
        raise UsageError(f"{why}; start one with 'xenvirtio lab up'")
    return found


def _shell(arguments: argparse.Namespace) -> int:
    from xenvirtio.lab.console import attach_terminal

    whose = f"domain {arguments.domain}" if arguments.domain else "dom0"
    _progress(f"serial console of {whose}; Ctrl-] leaves it")
    attach_terminal(_running(arguments.name).serial_path, arguments.domain)
    return 0


def _run(arguments: argparse.Namespace) -> int:
    running = _running(arguments.name)
    try:
        running.dom0().channel.request("ping", PING_TIMEOUT_S)  # a dom0 that is not there never would
        result = running.dom0().run(arguments.command, arguments.timeout, check=False)
    finally:
        running.close()
    sys.stdout.write(result.output)
    return result.status if result.status >= 0 else 128 - result.status


def _test(arguments: argparse.Namespace) -> int:
    from xenvirtio.lab.boot import boot, start
    from xenvirtio.lab.options import MachineOptions
    from xenvirtio.lab.scenarios.registry import MachineScenario, select
    from xenvirtio.lab.scenarios.theatre import SharedMachine, play_all

    chosen = select(arguments.only, arguments.skip)
    if arguments.list:
        for scenario in chosen:
            modes = ", ".join(mode.name.lower() for mode in scenario.modes)
            machine = "; a machine of its own" if isinstance(scenario, MachineScenario) else ""
            print(f"{scenario.name:<20} {scenario.description} [{modes}{machine}]")
        return 0
    plays = [
        (scenario, mode)
        for scenario in chosen
        for mode in scenario.modes
        if arguments.mode in (None, mode.name.lower())
    ]
    if not plays:
        raise UsageError(f"none of these scenarios has the mode {arguments.mode!r}")
    signal.signal(signal.SIGTERM, _end_tidily)

    def fresh() -> Machine:
        return boot(MachineOptions(), arguments.name, _progress)

    def start_one(options: MachineOptions, name: str) -> Machine:
        return start(options, name, _progress)

    shared = SharedMachine(lambda: _machine_or_boot(arguments.name), fresh)
    report = play_all(plays, shared, start_one, _progress)
    if arguments.format == "json":
        print(json.dumps(report, indent=2))
    else:
        for play in report["scenarios"]:
            verdict = "ok" if play["ok"] else "FAILED"
            print(f"{play['name']:<20} {play['mode']:<8} {verdict:<7} {play['seconds']:>7.1f} s")
        failed = sum(not play["ok"] for play in report["scenarios"])
        print(f"{len(report['scenarios']) - failed} passed, {failed} failed, {report['seconds']:.0f} s in all")
    return 0 if report["ok"] else 1


def _end_tidily(number: int, frame: object) -> None:
    """Let a SIGTERM run the ends of all blocks, so that no machine is left over."""
    raise SystemExit(128 + number)


def _machine_or_boot(name: str) -> tuple[Machine, bool]:
    """The running machine, or one booted now; the second value says that it is ours to stop."""
    from xenvirtio.lab import machine
    from xenvirtio.lab.boot import boot
    from xenvirtio.lab.options import MachineOptions

    found = machine.find(name)
    if found is None:
        return boot(MachineOptions(), name, _progress), True
    _progress("on the machine that runs; 'xenvirtio lab down' first for one with this working tree as it is now")
    return found, False


def _bench(arguments: argparse.Namespace) -> int:
    from xenvirtio.bench.store_table import table_of as store_table_of
    from xenvirtio.lab.bench import Bench, table_of
    from xenvirtio.lab.store_bench import measure_store

    if arguments.seconds <= 0 or arguments.rounds < 1:
        raise UsageError("--seconds takes more than 0, --rounds 1 or more")
    running, ours = _machine_or_boot(arguments.name)
    try:
        if arguments.store:
            report = measure_store(running, arguments.domains, arguments.seconds, arguments.rounds, _progress)
            table_of = store_table_of
        else:
            report = Bench(running, _progress).run(arguments.seconds, arguments.rounds)
    finally:
        running.stop() if ours else running.close()
    print(json.dumps(report, indent=2) if arguments.format == "json" else table_of(report))
    return 0


def _down(arguments: argparse.Namespace) -> int:
    from xenvirtio.lab import machine

    names = machine.running_names() if arguments.all else [arguments.name]
    found = [running for name in names if (running := machine.find(name)) is not None]
    if not found:
        _progress("no lab machine runs")
    for running in found:
        running.stop()
    return 0


def _clean(arguments: argparse.Namespace) -> int:
    from xenvirtio.lab import machine
    from xenvirtio.lab.apt import drop_downloads
    from xenvirtio.lab.paths import cache_root

    for name in machine.running_names():
        if (running := machine.find(name)) is not None:
            running.stop(at_once=True)
    for folder in ("artifacts", "work", "run", "systems"):
        shutil.rmtree(cache_root() / folder, ignore_errors=True)
    if arguments.all:
        drop_downloads()
    return 0
