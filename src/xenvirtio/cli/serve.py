"""`xenvirtio serve`: virtio devices for this host's guests, until SIGTERM."""

from __future__ import annotations

import argparse
import logging
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from xenvirtio import __version__
from xenvirtio._engine_choice import describe_engine
from xenvirtio.channels.xenbus_device import KernelStore
from xenvirtio.daemon.configuration import Configuration, load_configuration
from xenvirtio.daemon.logs import set_up_logging
from xenvirtio.daemon.one_process import only_one
from xenvirtio.daemon.plan_store import PlanStore
from xenvirtio.daemon.supervisor import Supervisor
from xenvirtio.errors import ResourceError
from xenvirtio.ids import DomId
from xenvirtio.static.plan import Plan, load_plan
from xenvirtio.xen.capabilities import Hypervisor
from xenvirtio.xenstore.client import XenStoreClient
from xenvirtio.xenstore.open import StoreNotReadyError, wait_store

log = logging.getLogger("xenvirtio.serve")

DEVICE_NODES = Path("/dev/xen")

DESCRIPTION = """\
Serve virtio devices to Xen guests from this domain (dom0, or a driver domain).

Guests are found in XenStore and come, go and reboot while this runs:
  disk=["format=raw, vdev=xvda, access=rw, backendtype=standalone, specification=virtio, target=/srv/disk.img"]
needs no configuration at all, since XenStore names the file. For
  virtio=["type=virtio,device2, transport=mmio, grant_usage=1"]
the configuration says what stands behind the device:

  [[device]]
  guest = "domu-*"                 # name or UUID, patterns allowed
  type = "block"
  resource = { file = "/srv/{guest}.img" }

Where guests are started by Xen and there is no toolstack, `xenvirtio control` enters their devices in XenStore and runs
this. Where there is no XenStore either, --plan names them.
"""

EPILOG = """\
signals:
  SIGTERM, SIGINT  finish what is under way and exit; guests keep waiting for a successor, nothing is lost
  SIGHUP           read the configuration again and look for grown disks
  SIGUSR1          log what every guest has cost so far: accesses, wake-ups, requests, grant copies

A process that was killed is replaced by simply starting another: it takes over the same IOREQ servers and the guests go
on. Exit codes: 0 ended by signal, 1 failed, 2 wrong configuration.
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "serve",
        help="serve virtio devices to this host's guests",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "configuration", nargs="?", type=Path, help="backends.toml; without it only disk= entries are served"
    )
    parser.add_argument(
        "--plan",
        type=Path,
        metavar="FILE",
        help="serve the devices of this domain's plan and use no XenStore at all: for a domain that has none",
    )
    parser.add_argument("--check", action="store_true", help="check the configuration and exit")
    parser.add_argument("--log-format", choices=("text", "json"), default="text", help="default: text")
    levels = ("debug", "info", "warning", "error")
    parser.add_argument("--log-level", choices=levels, default="info", help="default: info")
    parser.add_argument(
        "--emulated", metavar="DIR", type=Path, help="serve the emulated Xen host whose sockets are in DIR"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    set_up_logging(options.log_format, options.log_level)
    configuration = _load(options.configuration)
    plan = None if options.plan is None else load_plan(options.plan)
    if options.check:
        print(f"{options.configuration or 'defaults'}: fine, {len(configuration.devices)} device entries")
        return 0
    _allow_many_descriptors()
    # two backends answering one guest's accesses would corrupt both
    with only_one(configuration.daemon.state_dir, "xenvirtio serve", "set [daemon] state_dir"):
        log.info("starting", extra={"version": __version__, "engine": describe_engine()})
        with _connect(options.emulated, plan) as (hypervisor, store):
            if plan is None:
                _wait_for(store, is_emulated=options.emulated is not None)
            supervisor = Supervisor(hypervisor, store, configuration)
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, lambda *_: supervisor.stop())
            signal.signal(signal.SIGHUP, lambda *_: supervisor.request_reload(lambda: _load(options.configuration)))
            signal.signal(signal.SIGUSR1, lambda *_: supervisor.request_counters())
            supervisor.run()
    log.info("ended")
    return 0


def _load(path: Path | None) -> Configuration:
    return Configuration() if path is None else load_configuration(path)


@contextmanager
def _connect(emulated: Path | None, plan: Plan | None) -> Iterator[tuple[Hypervisor, XenStoreClient]]:
    """The hypervisor, and the XenStore of this machine or the one that a plan stands for."""
    hypervisor = _open_hypervisor(emulated, plan)
    if plan is not None:
        with PlanStore(plan, hypervisor) as planned:
            yield hypervisor, planned.client
        return
    with XenStoreClient() if emulated is None else XenStoreClient.at(emulated / "xenstore") as store:
        yield hypervisor, store


def _open_hypervisor(emulated: Path | None, plan: Plan | None) -> Hypervisor:
    if emulated is not None:
        from xenvirtio.xen.emulated import connect_emulated

        return connect_emulated(emulated / "hypervisor", DomId(0) if plan is None else plan.domid)
    from xenvirtio.xen.linux.host import LinuxHypervisor

    if not DEVICE_NODES.exists():
        raise ResourceError(
            f"no {DEVICE_NODES}: this machine does not run on Xen, or its modules xen-privcmd, xen-evtchn, xen-gntdev "
            "are missing; `xenvirtio doctor` says more, `xenvirtio demo` needs no Xen"
        )
    return LinuxHypervisor()


def _allow_many_descriptors() -> None:
    """Use what the system allows: a guest takes about ten descriptors, and the usual soft limit is 1024."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _wait_for(store: XenStoreClient, *, is_emulated: bool) -> None:
    """Wait for a XenStore that comes later than we do; any signal ends the process, which holds nothing yet.

    Raises:
        ResourceError: this domain will never have one.
    """
    if not store.wait_ready(1):
        if not is_emulated:
            _fail_without_store()
        log.warning("XenStore cannot be reached yet; waiting for it")
        while not store.wait_ready(10):
            pass


def _fail_without_store() -> None:
    try:
        wait_store(0)
    except StoreNotReadyError as error:
        if error.state is KernelStore.ABSENT:
            raise
