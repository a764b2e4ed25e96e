"""`xenvirtio doctor`: what `serve` needs, what of it is here, and how to get the rest."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

WIDTH_MAX = 120

DESCRIPTION = """\
Check everything that `xenvirtio serve` needs on this machine: Xen and what this domain may do, device nodes, kernel
features, XenStore, the compiled engine. Whatever is missing is named with what that means and how to get it.
Nothing is changed, and what might hang is tried in a process of its own.
"""

EPILOG = """\
--guest creates an IOREQ server for a guest, maps its page and destroys it at once. The server is never enabled, so the
guest does not meet it (Xen pauses it for a moment). It is the only proof that this domain may serve this guest, and the
only way to tell a Xen without IOREQ servers, XSM in SILO mode, a missing target and a restricted privcmd apart.

Exit codes: 0 serve can work here, 1 something is missing.
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "doctor",
        help="why is my device not there",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--guest", metavar="DOMID|NAME", help="try an IOREQ server with this guest")
    parser.add_argument(
        "--state-dir", type=Path, default=Path("/run/xenvirtio"), metavar="DIR", help="serve's; default: /run/xenvirtio"
    )
    parser.add_argument(
        "--format", choices=("text", "json"), default="text", help="json: one object with ok and checks"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from xenvirtio.doctor.checks import ALL
    from xenvirtio.doctor.machine import Machine
    from xenvirtio.doctor.report import as_json, as_text, is_fine

    machine = Machine(guest=options.guest, state_dir=options.state_dir.absolute())
    findings = [check(machine) for check in ALL]
    if options.format == "json":
        print(as_json(machine, findings))
    else:
        print(as_text(machine, findings, min(shutil.get_terminal_size().columns, WIDTH_MAX)))
    return 0 if is_fine(findings) else 1
