"""`xenvirtio store`: a XenStore of our own, and a client for any."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

DESCRIPTION = """\
Serve a XenStore (`store serve`), or look into one: ours, C xenstored, oxenstored, the small one of a Zephyr dom0.

  xenvirtio store serve --socket /tmp/xs &       # no Xen needed
  export XENSTORED_PATH=/tmp/xs                  # or --socket with each command; xenstore-ls and others obey it too
  xenvirtio store write /local/domain/3/name demo /vm/3 yes
  xenvirtio store tree /
"""

EPILOG = """\
Without --socket the server is looked for where libxenstore does: $XENSTORED_PATH, $XENSTORED_RUNDIR/socket,
/run/xenstored/socket, and in a guest /dev/xen/xenbus. A PATH that does not begin with / is relative to the caller's
home, /local/domain/N. Exit codes: 0 done (exists: there is such a node), 1 refused or absent, 2 wrong usage.
"""

VALUES = """\
Values are any bytes. In what is shown, and in what `write --escaped` takes, \\n \\r \\t \\\\ and \\xNN stand for what
cannot be printed.
"""

WAIT_DESCRIPTION = """\
Wait until XenStore answers, and say whether it does. In a dom0less domain XenStore comes late: the domain runs before
the control domain has introduced it. Until then this touches nothing (a write to the kernel's device before its time
would end XenStore for this domain until it reboots); it looks at /proc/interrupts, once a second in the end.

  xenvirtio store wait --timeout 60 && xenvirtio metadata register root --type block base=0x2000000 irq=33
"""

WAIT_EPILOG = """\
Exit codes: 0 ready, 1 late (promised, not there in time), 2 wrong usage, 3 absent (it will never come; said at once).
"""

SERVE_DESCRIPTION = """\
Serve a complete XenStore on a Unix socket until SIGTERM: all operations of Xen 4.22, transactions, watches with depth,
permissions. No Xen is needed. Clients of the socket are privileged, as dom0's are; it is readable by its owner alone.

With --xen it is the XenStore of a Xen host, in the place of xenstored: it also serves the rings of dom0's kernel and of
the domains that a toolstack introduces, and removes what dead domains leave. Start it before xen-init-dom0 and xl:

  xenvirtio store serve --xen --pid-file /run/xenstored.pid &
"""

SERVE_EPILOG = """\
With --state, what a client was told is done survives a restart, kill -9 included: each change is in the file before its
reply is sent. No transaction comes back half done; clients of this package reconnect by themselves and find each of
their watches fired. Domains notice nothing but a pause: their rings go on at the very byte, transactions that were open
answer EAGAIN. So do dom0's programs that use /dev/xen/xenbus (XENSTORED_PATH=/dev/xen/xenbus for xl, xenconsoled and
the like); a client of the socket loses its connection. The file outlives the process, not the machine (nothing is
synced, and a XenStore from before a reboot speaks of domains that are gone): /run is the place for it.

Exit codes: 0 ended by signal, 1 failed, 2 wrong usage.
"""

Add = Callable[..., argparse.ArgumentParser]


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    store = subparsers.add_parser(
        "store",
        help="a XenStore of our own, and a client for any",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = store.add_subparsers(dest="store_command", metavar="COMMAND", required=True)
    _add_serve(commands)
    _add_wait(commands)
    _add_reading(_adder(commands))
    _add_changing(_adder(commands))
    _add_permissions(commands)


def _add_serve(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    serve = commands.add_parser(
        "serve",
        help="serve a XenStore on a socket",
        description=SERVE_DESCRIPTION,
        epilog=SERVE_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    serve.add_argument(
        "--xen", action="store_true", help="serve the rings of this Xen host's domains as well; in dom0, as root"
    )
    serve.add_argument(
        "--socket",
        type=Path,
        metavar="PATH",
        help="where to listen; made with mode 0600; default with --xen: /run/xenstored/socket",
    )
    state = serve.add_mutually_exclusive_group()
    state.add_argument(
        "--state",
        type=Path,
        metavar="FILE",
        help="keep the state here; default: in memory only, with --xen /run/xenvirtio/store.state",
    )
    state.add_argument("--no-state", action="store_true", help="in memory only, with --xen too")
    serve.add_argument("--pid-file", type=Path, metavar="FILE", help="write the process id there once it serves")
    serve.add_argument("--log-format", choices=("text", "json"), default="text", help="default: text")
    serve.set_defaults(run=_run_serve)


def _add_wait(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    wait = commands.add_parser(
        "wait",
        help="wait until XenStore answers, or say that it never will",
        description=WAIT_DESCRIPTION,
        epilog=WAIT_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    wait.add_argument("--timeout", type=float, default=30.0, metavar="S", help="default: 30; 0 looks once")
    wait.add_argument("--socket", type=Path, metavar="PATH", help="the server's socket; default: as libxenstore")
    wait.add_argument("--format", choices=("text", "json"), default="text", help="default: text")
    wait.set_defaults(run=_run_wait)


def _adder(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> Add:
    def add(name: str, summary: str, *, json: bool = False, more: str = "") -> argparse.ArgumentParser:
        parser = commands.add_parser(
            name,
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}.\n{more and chr(10) + more}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        parser.add_argument("--socket", type=Path, metavar="PATH", help="the server's socket; default: as libxenstore")
        parser.add_argument(
            "--wait", type=float, default=0.0, metavar="S", help="wait so long for a server to appear; default: 0"
        )
        if json:
            parser.add_argument("--format", choices=("text", "json"), default="text", help="default: text")
        parser.set_defaults(run=_run_client, action=name.replace(" ", "_"))
        return parser

    return add


def _add_reading(add: Add) -> None:
    ls = add("ls", "list the children of a node", json=True, more=VALUES)
    ls.add_argument("-l", "--long", action="store_true", help="permissions, number of children and value as well")
    ls.add_argument("path", nargs="?", default="/", metavar="PATH", help="default: /")
    tree = add("tree", "show a node and all below it", json=True, more=VALUES)
    tree.add_argument("-d", "--depth", type=int, metavar="N", help="how many levels below PATH; default: all")
    tree.add_argument("-p", "--perms", action="store_true", help="show permissions")
    tree.add_argument("--no-values", action="store_true", help="names alone")
    tree.add_argument("path", nargs="?", default="/", metavar="PATH", help="default: /")
    read = add("read", "print values, each on a line", json=True, more=VALUES)
    read.add_argument("--raw", action="store_true", help="the very bytes, nothing escaped and no newline")
    read.add_argument("paths", nargs="+", metavar="PATH")
    exists = add(
        "exists", "say by the exit code whether there is a node", more="Exit codes: 0 there is, 1 there is not.\n"
    )
    exists.add_argument("path", metavar="PATH")
    watch = add(
        "watch",
        "print the path of each change at or below a node",
        json=True,
        more="The first line comes at once, and one after each restart of the server: look what is there now.\n"
        "@introduceDomain and @releaseDomain tell of domains that come and go.\n",
    )
    watch.add_argument("-n", "--count", type=int, metavar="N", help="end after so many lines")
    watch.add_argument(
        "--timeout", type=float, metavar="S", help="end after so long; fails when N lines were asked for"
    )
    watch.add_argument("paths", nargs="+", metavar="PATH")


def _add_changing(add: Add) -> None:
    write = add(
        "write",
        "write values, making nodes and directories as needed",
        more="Several are written in one transaction, or one by one where the server has none.\n\n" + VALUES,
    )
    write.add_argument("-e", "--escaped", action="store_true", help="values have \\n, \\xNN and the like")
    write.add_argument("pairs", nargs="+", metavar="PATH VALUE")
    rm = add("rm", "remove nodes with all below them", more="An absent one in an existing directory is fine.\n")
    rm.add_argument("paths", nargs="+", metavar="PATH")
    mkdir = add("mkdir", "make nodes with an empty value unless they are there")
    mkdir.add_argument("paths", nargs="+", metavar="PATH")


def _add_permissions(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    more = """\
An entry is a letter and a domid: n nothing, r read, w write, b both. The first one names the owner, who may do all;
its letter is for all domains that no other entry names. n0 r5: domain 0 owns it, 5 may read it, nobody else anything.
"""
    perms = commands.add_parser(
        "perms",
        help="show or set permissions",
        description="Show or set permissions.\n\n" + more,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = _adder(perms.add_subparsers(dest="perms_command", metavar="COMMAND", required=True))
    get = add("get", "show the permissions of a node", json=True, more=more)
    get.add_argument("path", metavar="PATH")
    get.set_defaults(action="perms_get")
    change = add("set", "replace the permissions of a node", more=more)
    change.add_argument("-r", "--recursive", action="store_true", help="of all below it as well")
    change.add_argument("path", metavar="PATH")
    change.add_argument("entries", nargs="+", metavar="ENTRY")
    change.set_defaults(action="perms_set")


def _run_client(options: argparse.Namespace) -> int:
    from xenvirtio.cli import store_client

    return store_client.run(options)


def _run_serve(options: argparse.Namespace) -> int:
    from xenvirtio.cli import store_serve

    return store_serve.run(options)


def _run_wait(options: argparse.Namespace) -> int:
    from xenvirtio.cli import store_wait

    return store_wait.run(options)
