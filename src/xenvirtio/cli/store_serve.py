"""`xenvirtio store serve`: the XenStore behind a socket, with `--xen` behind domains' rings too, until SIGTERM."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from xenvirtio import __version__
from xenvirtio.daemon.logs import set_up_logging
from xenvirtio.errors import ConfigurationError, HypervisorError
from xenvirtio.xenstore.journal_file import JournalFile
from xenvirtio.xenstore.serve import XenStoreService
from xenvirtio.xenstore.serve_xen import OFFERED_ON_XEN, XenRings
from xenvirtio.xenstore.server import OFFERED_FEATURES, XenStoreServer

log = logging.getLogger("xenvirtio.store")

XEN_SOCKET = Path("/run/xenstored/socket")
XEN_STATE = Path("/run/xenvirtio/store.state")
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def run(options: argparse.Namespace) -> int:
    """Serve until SIGTERM or SIGINT."""
    set_up_logging(options.log_format, "info")
    signals = {signal.SIGTERM, signal.SIGINT}
    former = signal.pthread_sigmask(signal.SIG_BLOCK, signals)  # before there are threads: they inherit it
    failures: list[threading.ExceptHookArgs] = []
    threading.excepthook = lambda failure: _fail(failures, failure)
    try:
        with ExitStack() as stack:
            _start(options, stack)
            number = signal.sigwait(signals)
        if failures:
            return 1
        log.info("ended", extra={"signal": signal.Signals(number).name})
        return 0
    finally:
        threading.excepthook = threading.__excepthook__
        signal.pthread_sigmask(signal.SIG_SETMASK, former)


def _start(options: argparse.Namespace, stack: ExitStack) -> None:
    """Begin to serve; `stack` ends it."""
    rings = _open_xen() if options.xen else None
    if rings is not None:
        stack.callback(rings.close)
    socket, state = _places(options)
    features = OFFERED_FEATURES if rings is None else OFFERED_ON_XEN
    server = XenStoreServer(time.monotonic, host=rings, features=features, log=log.info)
    save: Callable[[], None] = lambda: None  # noqa: E731
    if state is not None:
        boot = BOOT_ID.read_text().strip() if options.xen else None
        journal = JournalFile(state.absolute(), server, clock=time.monotonic, warn=log.warning, boot=boot)
        stack.callback(journal.close)
        save = journal.save
    service = XenStoreService(server, save=save)
    if rings is not None:
        _serve_rings(rings, service, server)
    _listen(service, socket)
    stack.enter_context(service)
    if options.pid_file is not None:
        stack.enter_context(_pid_file(options.pid_file))
    facts = {"version": __version__, "socket": str(socket), "nodes": len(server.tree)}
    rings_served = {} if rings is None else {"rings": len(rings.links)}
    log.info("serving", extra={**facts, **rings_served, "state": str(state) if state else "in memory"})


def _places(options: argparse.Namespace) -> tuple[Path, Path | None]:
    """Return socket and state file; the directories of the usual ones are made."""
    socket, state = options.socket, options.state
    if not options.xen:
        if socket is None:
            raise ConfigurationError("--socket", "missing", "say where to listen, or --xen for the usual place")
        return socket, state
    if socket is None:
        socket = XEN_SOCKET
        _make_directory(socket.parent)
    if state is None and not options.no_state:
        state = XEN_STATE
        _make_directory(state.parent)
    return socket, state


def _make_directory(place: Path) -> None:
    try:
        place.mkdir(mode=0o755, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(str(place), error.strerror or str(error), "choose --socket and --state") from error


def _open_xen() -> XenRings:
    from xenvirtio.xen.linux.host import LinuxHypervisor  # only here: no Xen is needed otherwise

    try:
        return XenRings(LinuxHypervisor(), warn=log.warning)
    except HypervisorError as error:
        raise ConfigurationError("--xen", str(error), "without Xen, leave --xen away") from error


def _serve_rings(rings: XenRings, service: XenStoreService, server: XenStoreServer) -> None:
    try:
        rings.start(service, server)
    except HypervisorError as error:
        raise ConfigurationError("--xen", str(error), "only one XenStore server can run, in dom0") from error


def _listen(service: XenStoreService, path: Path) -> None:
    try:
        service.listen(path)
    except OSError as error:
        raise ConfigurationError(str(path), error.strerror or str(error), "choose another --socket") from error


@contextmanager
def _pid_file(path: Path) -> Iterator[None]:
    try:
        path.write_text(f"{os.getpid()}\n")
    except OSError as error:
        raise ConfigurationError(str(path), error.strerror or str(error), "choose another --pid-file") from error
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def _fail(failures: list[threading.ExceptHookArgs], failure: threading.ExceptHookArgs) -> None:
    """The thread that serves has failed: end the process, so that whoever watches it starts another."""
    failures.append(failure)
    log.error("the server failed", exc_info=failure.exc_value)
    os.kill(os.getpid(), signal.SIGTERM)
