"""`xenvirtio argo`: messages between domains that Xen itself copies, to try them out and to measure."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TypeAlias

from xenvirtio.cli.numbers import domid, whole_number

DESCRIPTION = """\
Send and receive Argo messages. Xen copies them from one domain's memory into a ring of the other: no shared memory, no
XenStore, no toolstack, and the receiver knows for sure which domain a message is from.

  domain 1:  xenvirtio argo listen --port 0x100 --from 0 --echo
  domain 0:  xenvirtio argo ping 1:0x100 --count 100
"""

EPILOG = """\
What it takes: Xen built with CONFIG_ARGO and booted with argo=1; root; and in a guest xen_privcmd.unrestricted=1 on the
kernel's command line (dom0 needs nothing). With XSM in SILO mode, the default on Arm, one end must be dom0. Ports are
32-bit numbers that the two ends agree on; each end names the domains it hears (`--from any` needs Xen's
argo=1,mac-permissive=1).

Exit codes: 0 done, 1 refused or no answer, 2 wrong usage.
"""

RELEASE_DESCRIPTION = """\
Take a ring from Xen that a killed process of this domain has left behind. Rings unregister themselves when their
process ends, however it ends; this is for the case that its keeper was killed as well (then a new process is told
EEXIST). Xen writes into the memory of a ring until it is unregistered: do not take one that is in use.
"""

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    argo = subparsers.add_parser(
        "argo",
        help="send, receive and measure Argo messages between domains",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = argo.add_subparsers(dest="argo_command", metavar="COMMAND", required=True)
    _add_ping(commands)
    _add_send(commands)
    _add_listen(commands)
    _add_release(commands)


def _add(commands: Commands, name: str, summary: str, description: str | None = None) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name,
        help=summary,
        description=description or f"{summary[0].upper()}{summary[1:]}.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--emulated", type=Path, metavar="DIR", help="use the emulated Xen host whose sockets are in DIR"
    )
    parser.add_argument(
        "--domid", type=domid, default=0, metavar="N", help="with --emulated: the domain to be; default: 0"
    )
    parser.set_defaults(run=_run, action=name)
    return parser


def _add_format(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--format", choices=("text", "json"), default="text", help="default: text")


def _add_ping(commands: Commands) -> None:
    ping = _add(
        commands,
        "ping",
        "measure round trips to a listener with --echo",
        "Send messages to a domain that runs `xenvirtio argo listen --echo` and time the answers. One is under way\n"
        "at a time; what comes back is compared byte for byte.",
    )
    ping.add_argument("to", type=address, metavar="DOMID:PORT", help="such as 1:0x100")
    ping.add_argument("--count", type=whole_number(1, 10_000_000), default=10, metavar="N", help="default: 10")
    ping.add_argument(
        "--size", type=whole_number(8, 1 << 24), default=16, metavar="BYTES", help="of a message; default: 16"
    )
    ping.add_argument("--interval", type=float, default=0.2, metavar="S", help="between two; default: 0.2")
    ping.add_argument("--timeout", type=float, default=5.0, metavar="S", help="for one answer; default: 5")
    ping.add_argument("--quiet", action="store_true", help="the summary alone")
    _add_format(ping)


def _add_send(commands: Commands) -> None:
    send = _add(commands, "send", "send messages")
    send.add_argument("to", type=address, metavar="DOMID:PORT", help="such as 1:0x100")
    send.add_argument("messages", nargs="+", metavar="TEXT", help="one message each; - is all of standard input")
    send.add_argument("--type", type=port, default=0, metavar="N", help="32-bit number that goes with it; default: 0")
    send.add_argument("--count", type=whole_number(1, 10_000_000), default=1, metavar="N", help="send them N times")
    send.add_argument(
        "--timeout", type=float, default=5.0, metavar="S", help="for room in the receiver's ring; default: 5"
    )


def _add_listen(commands: Commands) -> None:
    listen = _add(
        commands,
        "listen",
        "print what arrives, or send it back",
        "Print what arrives on a port, a message on a line. Ends on SIGTERM and SIGINT, and unregisters its rings.",
    )
    listen.add_argument("--port", type=port, required=True, metavar="P", help="such as 0x100")
    listen.add_argument(
        "--from",
        dest="partners",
        type=partner,
        action="append",
        required=True,
        metavar="DOMID",
        help="or any; repeatable",
    )
    listen.add_argument("--echo", action="store_true", help="send each message back to its sender, and print nothing")
    listen.add_argument("-n", "--count", type=whole_number(1, 1 << 62), metavar="N", help="end after N messages")
    listen.add_argument(
        "--timeout", type=float, metavar="S", help="end after S seconds; fails when --count is not reached"
    )
    listen.add_argument(
        "--ring-size", type=whole_number(48, 1 << 24), metavar="BYTES", help="of each ring; default: 65472"
    )
    _add_format(listen)


def _add_release(commands: Commands) -> None:
    release = _add(commands, "release", "take away a ring that a killed process left behind", RELEASE_DESCRIPTION)
    release.add_argument("--port", type=port, required=True, metavar="P", help="such as 0x100")
    release.add_argument("--from", dest="partners", type=partner, action="append", required=True, metavar="DOMID")


def port(text: str) -> int:
    return whole_number(0, 0xFFFFFFFF)(text)


def address(text: str) -> tuple[int, int]:
    where, colon, what = text.partition(":")
    if not colon:
        raise argparse.ArgumentTypeError(f"found {text!r}, allowed: DOMID:PORT, such as 1:0x100")
    return domid(where), port(what)


def partner(text: str) -> int:
    return ANY if text == "any" else domid(text)


ANY = 0x7FF4


def _run(options: argparse.Namespace) -> int:
    from xenvirtio.cli import argo_commands

    return argo_commands.run(options)
