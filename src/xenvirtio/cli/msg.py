"""`xenvirtio msg`: virtio without traps, from domain to domain."""

from __future__ import annotations

import argparse
import logging
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from xenvirtio.cli.numbers import whole_number
from xenvirtio.daemon.logs import set_up_logging
from xenvirtio.static.plan import DEFAULT_PLAN, Plan, Role, load_plan
from xenvirtio.xen.capabilities import Hypervisor

if TYPE_CHECKING:
    from xenvirtio.frontend.msg_disk import MsgDisk

log = logging.getLogger("xenvirtio.msg")

DESCRIPTION = """\
Virtio over messages (virtio-msg, experimental): a device of one domain used by another, through one static shared
region and one static event channel, or over Argo. No access traps, and with a static region no dom0 takes part at all.

The plan of each domain (/etc/xenvirtio/plan.toml, written by `xenvirtio static build`) names devices, regions and
channels. A disk from a file in domain B, used by domain A from its first second of user space:

  in B:  xenvirtio msg serve disk0 --file /disk.img
  in A:  xenvirtio msg info disk0
         xenvirtio msg verify disk0 --size 4M       # overwrites, reads back, prints a sha256
         xenvirtio msg read disk0 --size 1M | sha256sum

Either end may be started first, killed and started again: the other one notices and both begin anew.
"""

EPILOG = """\
What it takes: /dev/xen/evtchn and a way to map the region: /dev/mem of a kernel without CONFIG_STRICT_DEVMEM, or a
generic-uio node over it; both ends the same (--map). Over Argo: Xen with argo=1, and grants from the domain that uses
the device (/dev/xen/gntalloc).

Exit codes: 0 done, 1 failed, 2 wrong usage or plan.
"""

SERVE_DESCRIPTION = """\
Serve devices that the plan gives this domain, until SIGTERM. With NAME and --file one disk; with --config all of them,
their files taken from backends.toml, where `guest` is the plan's name of the other domain.
"""

UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
BLOCK_BYTES = 64 << 10


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    msg = subparsers.add_parser(
        "msg",
        help="virtio without traps, from domain to domain (experimental)",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = msg.add_subparsers(dest="msg_command", metavar="COMMAND", required=True)
    _add_serve(commands)
    info = _add_client(commands, "info", "show a device as its driver finds it")
    info.add_argument("--count", type=whole_number(1, 100_000), default=10, metavar="N", help="pings; default: 10")
    for name, summary in (
        ("read", "copy from a disk to standard output"),
        ("write", "copy from standard input to a disk"),
        ("verify", "overwrite a part of a disk, read it back and compare"),
    ):
        parser = _add_client(commands, name, summary)
        parser.add_argument("--offset", type=size, default=0, metavar="BYTES", help="where to begin; default: 0")
        if name != "write":
            parser.add_argument("--size", type=size, required=True, metavar="BYTES", help="how much: 4096, 64K, 4M")
        parser.add_argument(
            "--block", type=size, default=BLOCK_BYTES, metavar="BYTES", help="of one request; default: 64K"
        )
        if name == "verify":
            parser.add_argument("--seed", type=whole_number(0, 1 << 62), default=1, metavar="N", help="of the pattern")


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--plan", type=Path, default=DEFAULT_PLAN, metavar="FILE", help=f"default: {DEFAULT_PLAN}")
    parser.add_argument(
        "--map", choices=("auto", "mem", "uio"), default="auto", help="how to map a region; default: auto, mem first"
    )
    parser.add_argument(
        "--emulated", metavar="DIR", type=Path, help="use the emulated Xen host whose sockets are in DIR"
    )
    parser.add_argument("--log-format", choices=("text", "json"), default="text", help="default: text")
    levels = ("debug", "info", "warning", "error")
    parser.add_argument("--log-level", choices=levels, default="info", help="default: info")


def _add_serve(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    serve = commands.add_parser(
        "serve",
        help="serve the devices that the plan gives this domain",
        description=SERVE_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    serve.add_argument("name", nargs="?", metavar="NAME", help="of a device in the plan; without it: all")
    serve.add_argument("--file", type=Path, metavar="FILE", help="the disk image or block device behind NAME")
    serve.add_argument("--read-only", action="store_true", help="of --file")
    serve.add_argument("--config", type=Path, metavar="FILE", help="backends.toml: what stands behind the devices")
    _add_common(serve)
    serve.set_defaults(run=_serve)


def _add_client(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str, summary: str
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.")
    parser.add_argument("name", metavar="NAME", help="of a device in the plan")
    parser.add_argument(
        "--wait", type=float, metavar="S", help="give up when nobody is there after S seconds; default: never"
    )
    _add_common(parser)
    parser.set_defaults(run=_use, action=name)
    return parser


def size(text: str) -> int:
    """Parse a number of bytes, a multiple of 512, with K, M or G for powers of 1024."""
    digits, unit = (text[:-1], text[-1].upper()) if text[-1:].isalpha() else (text, "")
    try:
        number = int(digits, 0) * UNITS[unit]
    except (ValueError, KeyError):
        number = -1
    if number < 0 or number % 512:
        raise argparse.ArgumentTypeError(f"found {text!r}, allowed: a multiple of 512 such as 4096, 64K, 4M")
    return number


def _open_hypervisor(emulated: Path | None, plan: Plan) -> Hypervisor:
    if emulated is not None:
        from xenvirtio.xen.emulated import connect_emulated

        return connect_emulated(emulated / "hypervisor", plan.domid)
    from xenvirtio.xen.linux.host import LinuxHypervisor

    return LinuxHypervisor()


def _serve(options: argparse.Namespace) -> int:
    from xenvirtio.daemon.msg_serve import MessageServer, choose_devices

    set_up_logging(options.log_format, options.log_level)
    plan = load_plan(options.plan)
    chosen = choose_devices(plan, options.name, options.file, read_only=options.read_only, config=options.config)
    server = MessageServer(_open_hypervisor(options.emulated, plan), plan, chosen, how=options.map)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: server.stop())
    server.run()
    return 0


def _use(options: argparse.Namespace) -> int:
    from xenvirtio.daemon.msg_plan import find_bus
    from xenvirtio.frontend.msg_disk import MsgDisk

    set_up_logging(options.log_format, options.log_level)
    plan = load_plan(options.plan)
    bus, device = find_bus(plan, Role.FRONTEND, options.name)
    carrier = bus.open(_open_hypervisor(options.emulated, plan), how=options.map)
    with MsgDisk(carrier, device.devid) as disk:
        disk.probe(options.wait)
        return _run(options, disk, carrier.description)


def _run(options: argparse.Namespace, disk: MsgDisk, description: str) -> int:
    from xenvirtio.frontend import msg_commands

    match options.action:
        case "info":
            print(msg_commands.describe(disk, description, pings=options.count))
            return 0
        case "read":
            msg_commands.read(disk, options.offset, options.size, options.block, sys.stdout.buffer)
            return 0
        case "write":
            print(msg_commands.write(disk, options.offset, options.block, sys.stdin.buffer), file=sys.stderr)
            return 0
    report = msg_commands.verify(disk, options.offset, options.size, options.block, options.seed)
    print(report.text())
    return 0 if report.is_good else 1
