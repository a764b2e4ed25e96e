"""`xenvirtio metadata`: frontends announce their devices, backends find them, over whatever channel there is."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TypeAlias

from xenvirtio.cli.numbers import domid

DESCRIPTION = """\
Register the devices of this domain, and find those of others: who has which device, where its registers, memory and
queues are. The same over every channel:

  xenstore   records under the domain's own data/xenvirtio; XenStore says whose they are; a late one is waited for
  plan       /etc/xenvirtio/plan.toml, placed when the system was built: `find` reads it, `register` checks against it
  argo       a registry in the backend's domain (`metadata serve`); Xen says whose a record is; no XenStore needed
  auto       (default) XenStore where there is or will be one, else the plan, else Argo

  in the frontend's domain:  xenvirtio metadata register root --type block transport=mmio base=0x2000000 irq=33
  in the backend's domain:   xenvirtio metadata find --type block --wait
"""

REGISTER_DESCRIPTION = """\
Announce a device of this domain, or replace what was announced under that name. Fields are what the two ends need to
meet; names that backends of this package understand are in docs/metadata.md. At most 32 of them, 512 bytes each.
"""

REGISTER_EPILOG = """\
With xenstore the record stays until it is withdrawn or the domain ends; --peer names the domains that may read it
besides dom0. With argo it stays as long as the registry and this domain do. --keep stays until SIGTERM and registers
again when a server or registry has restarted and forgotten. With a plan nothing is written: what differs is refused.

Exit codes: 0 done, 1 no channel or no answer, 2 wrong usage, or refused.
"""

FIND_EPILOG = """\
Exit codes: 0 found, 1 nothing found (with --wait: in time), no channel or no answer, 2 wrong usage.
"""

SERVE_DESCRIPTION = """\
Be the registry over Argo of this domain until SIGTERM. --from names the domains that may register; they need not be
there yet. Each has a memory ring of its own, sees its own records and this domain's, and is forgotten when it ends.
Records are kept in memory: after a restart, programs that are still there register theirs again by themselves.
"""

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    metadata = subparsers.add_parser(
        "metadata",
        help="register devices and find them, over XenStore, a plan or Argo",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = metadata.add_subparsers(dest="metadata_command", metavar="COMMAND", required=True)
    register = _add(commands, "register", "announce a device of this domain", REGISTER_DESCRIPTION, REGISTER_EPILOG)
    register.add_argument("name", metavar="NAME")
    register.add_argument("--type", required=True, metavar="T", help="block, net, console, scmi, ...")
    register.add_argument("--keep", action="store_true", help="stay, and register again when the registry restarts")
    register.add_argument("fields", nargs="+", metavar="KEY=VALUE")
    withdraw = _add(commands, "withdraw", "take an announcement back")
    withdraw.add_argument("name", metavar="NAME")
    find = _add(commands, "find", "print what is registered", epilog=FIND_EPILOG)
    find.add_argument("--type", metavar="T", help="only devices of this type")
    find.add_argument("--name", metavar="NAME", help="only devices of this name")
    find.add_argument("--wait", action="store_true", help="wait until there is one, as long as --timeout says")
    find.add_argument("--format", choices=("text", "json"), default="text", help="default: text")
    _add_serve(commands)


def _add(
    commands: Commands, name: str, summary: str, description: str | None = None, epilog: str | None = None
) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name,
        help=summary,
        description=description or f"{summary[0].upper()}{summary[1:]}.",
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--via", choices=("auto", "xenstore", "plan", "argo"), default="auto", help="the channel; default: auto"
    )
    parser.add_argument(
        "--timeout", type=float, default=30.0, metavar="S", help="for a late XenStore, a registry, --wait; default: 30"
    )
    parser.add_argument("--socket", type=Path, metavar="PATH", help="xenstore: the server's; default: as libxenstore")
    parser.add_argument(
        "--peer",
        dest="peers",
        type=domid,
        action="append",
        default=[],
        metavar="DOMID",
        help="xenstore: may read what is registered, and is looked at by find; repeatable",
    )
    parser.add_argument("--plan", type=Path, metavar="FILE", help="plan: default: /etc/xenvirtio/plan.toml")
    parser.add_argument(
        "--registry", type=domid, default=0, metavar="DOMID", help="argo: the registry's domain; default: 0"
    )
    _add_emulated(parser)
    parser.set_defaults(run=_run, action=name)
    return parser


def _add_emulated(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--emulated", type=Path, metavar="DIR", help="an emulated Xen host: where its sockets are")
    parser.add_argument("--domid", type=domid, default=0, metavar="N", help="with --emulated: which domain to be")


def _add_serve(commands: Commands) -> None:
    serve = commands.add_parser(
        "serve",
        help="be the registry over Argo",
        description=SERVE_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    serve.add_argument(
        "--from", dest="partners", type=domid, action="append", required=True, metavar="DOMID", help="repeatable"
    )
    serve.add_argument("--emulated", type=Path, metavar="DIR", help="an emulated Xen host: where its sockets are")
    serve.add_argument("--domid", type=domid, default=0, metavar="N", help="this domain's own number; default: 0")
    serve.set_defaults(run=_run, action="serve")


def _run(options: argparse.Namespace) -> int:
    from xenvirtio.cli import metadata_commands

    return metadata_commands.run(options)
