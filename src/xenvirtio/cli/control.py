"""`xenvirtio control`: dom0 for dom0less guests, without a toolstack, until SIGTERM."""

from __future__ import annotations

import argparse
import logging
import signal
from pathlib import Path

from xenvirtio import __version__
from xenvirtio.control.children import Child
from xenvirtio.control.introducer import CONTROL_DOMID, Introducer, OnStop
from xenvirtio.control.keeper import Keeper
from xenvirtio.daemon.configuration import load_configuration
from xenvirtio.daemon.logs import set_up_logging
from xenvirtio.daemon.one_process import only_one
from xenvirtio.errors import ConfigurationError, ResourceError
from xenvirtio.static.plan import DEFAULT_PLAN, Plan, load_plan
from xenvirtio.xen.capabilities import Hypervisor
from xenvirtio.xenstore.client import XenStoreClient

log = logging.getLogger("xenvirtio.control")

DEFAULT_STATE_DIR = Path("/run/xenvirtio/control")
DEFAULT_SOCKET = Path("/run/xenstored/socket")
ONCE_WAIT_S = 30.0

DESCRIPTION = """\
Be the dom0 of guests that Xen itself started (dom0less), with no toolstack, no xl and no xenstored:

  - run a XenStore, on a socket for this domain and on the rings of the guests,
  - write dom0's own nodes and those of every guest, and connect the guests to XenStore (introduce them),
  - enter the virtio devices that dom0 serves by its plan, and run `xenvirtio serve` for them,
  - notice domains that stop, destroy them, and take their nodes away.

A guest may boot long before: its XenStore appears late, and `xenvirtio metadata` and Linux wait for it. What must not
come late is the IOREQ server of a virtio-mmio device: a guest kernel that probes one without a backend is crashed by
Xen up to 4.20. Start this as the first thing in dom0, and build such guests with a gate (`xenvirtio static build`).
"""

EPILOG = """\
signals:
  SIGTERM, SIGINT  end the backend and the store, then exit; guests go on, their next access waits for a successor
  SIGHUP           have the backend read its configuration again, and look at all domains

All three processes may be killed at any time. A killed store or backend is started again at once and goes on where it
was; a killed control takes both with it, and the next one adopts everything it finds.

Exit codes: 0 ended by signal (or all domains served, with --once), 1 failed (with --once: a domain could not be
introduced), 2 wrong usage or configuration.
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "control",
        help="be dom0 for dom0less guests, without a toolstack",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--plan",
        type=Path,
        metavar="FILE",
        help=f"dom0's plan: names of domains, devices it serves; default: {DEFAULT_PLAN} if there is one",
    )
    parser.add_argument(
        "--state",
        type=Path,
        default=DEFAULT_STATE_DIR,
        metavar="DIR",
        help="where the store keeps its nodes; must not outlive the machine; default: %(default)s",
    )
    parser.add_argument(
        "--socket", type=Path, metavar="PATH", help=f"the store's socket; default: {DEFAULT_SOCKET}"
    )
    parser.add_argument("--serve", type=Path, metavar="CONFIG", help="backends.toml for `xenvirtio serve`")
    parser.add_argument("--no-serve", action="store_true", help="run no backend")
    parser.add_argument("--no-store", action="store_true", help="run no store: use the XenStore that there is")
    parser.add_argument(
        "--on-stop",
        choices=[choice.value for choice in OnStop],
        default=OnStop.DESTROY.value,
        help="what to do with a guest that has powered off, rebooted or crashed; default: %(default)s",
    )
    parser.add_argument(
        "--once",
        action="store_true",
        help="introduce what is there to a XenStore that runs already, and exit; runs neither store nor backend",
    )
    parser.add_argument("--log-format", choices=("text", "json"), default="text", help="default: text")
    parser.add_argument("--emulated", metavar="DIR", type=Path, help="control the emulated Xen host in DIR")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    set_up_logging(options.log_format, "info")
    plan = _load_plan(options.plan)
    if options.serve is not None:
        if options.no_serve:
            raise ConfigurationError("--serve", "contradicts --no-serve")
        load_configuration(options.serve)  # wrong at the start is better said here than by a child again and again
    hypervisor = _open_hypervisor(options.emulated)
    control = hypervisor.open_domain_control()
    log.info("starting", extra={"version": __version__, "xen": str(control.xen_version())})
    if options.once:
        with _client(options) as store:
            introducer = Introducer(control, hypervisor.open_foreign_memory, store, plan, on_stop=OnStop.KEEP)
            return _once(introducer, store)
    # two controls would introduce every domain twice
    with only_one(options.state, "xenvirtio control", "choose another --state"), _client(options) as store:
        introducer = Introducer(
            control, hypervisor.open_foreign_memory, store, plan, on_stop=OnStop(options.on_stop)
        )
        keeper = Keeper(introducer, store, _children(options))
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: keeper.stop())
        signal.signal(signal.SIGHUP, lambda *_: keeper.hang_up())
        keeper.run()
    log.info("ended")
    return 0


def _load_plan(path: Path | None) -> Plan | None:
    if path is None and not DEFAULT_PLAN.exists():
        return None
    source = DEFAULT_PLAN if path is None else path
    plan = load_plan(source)
    if plan.domid != CONTROL_DOMID:
        raise ConfigurationError(
            f"{source}: domid", f"found {plan.domid}, the plan of {plan.name!r}", "allowed: 0, dom0's own plan"
        )
    return plan


def _open_hypervisor(emulated: Path | None) -> Hypervisor:
    if emulated is not None:
        from xenvirtio.xen.emulated import connect_emulated

        return connect_emulated(emulated / "hypervisor")
    from xenvirtio.xen.linux.host import LinuxHypervisor

    if not Path("/dev/xen").exists():
        raise ResourceError(
            "no /dev/xen: this machine does not run on Xen, or its modules xen-privcmd, xen-evtchn, xen-gntdev are "
            "missing; `xenvirtio doctor` says more"
        )
    return LinuxHypervisor()


def _socket(options: argparse.Namespace) -> Path:
    if options.socket is not None:
        return Path(options.socket)
    return DEFAULT_SOCKET if options.emulated is None else Path(options.emulated) / "xenstore"


def _client(options: argparse.Namespace) -> XenStoreClient:
    if (options.no_store or options.once) and options.socket is None and options.emulated is None:
        return XenStoreClient()
    return XenStoreClient.at(_socket(options))


def _children(options: argparse.Namespace) -> list[Child]:
    emulated = [] if options.emulated is None else ["--emulated", str(options.emulated)]
    log_format = ["--log-format", options.log_format]
    children = []
    if not options.no_store:
        socket = _socket(options)
        socket.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        arguments = ["store", "serve", "--socket", str(socket), "--state", str(options.state / "xenstore")]
        rings = ["--xen"] if options.emulated is None else []
        children.append(Child("store", arguments + rings + log_format))
    if not options.no_serve:
        configuration = [] if options.serve is None else [str(options.serve)]
        children.append(Child("backend", ["serve", *emulated, *log_format, *configuration], takes_hang_up=True))
    return children


def _once(introducer: Introducer, store: XenStoreClient) -> int:
    if not store.wait_ready(ONCE_WAIT_S):
        raise ResourceError(f"no XenStore answered within {ONCE_WAIT_S:g} s")
    outcome = introducer.reconcile()
    facts = {"introduced": len(outcome.introduced), "failed": len(outcome.failed), "gone": len(outcome.gone)}
    log.info("done", extra=facts)
    return 1 if outcome.failed else 0
