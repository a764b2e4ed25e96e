"""`xenvirtio store serve`: the XenStore behind a socket, until SIGTERM."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import threading
import time
from pathlib import Path

from xenvirtio import __version__
from xenvirtio.daemon.logs import set_up_logging
from xenvirtio.errors import ConfigurationError
from xenvirtio.xenstore.journal_file import JournalFile
from xenvirtio.xenstore.serve import XenStoreService
from xenvirtio.xenstore.server import XenStoreServer

log = logging.getLogger("xenvirtio.store")


def run(options: argparse.Namespace) -> int:
    """Serve until SIGTERM or SIGINT."""
    set_up_logging(options.log_format, "info")
    signals = {signal.SIGTERM, signal.SIGINT}
    former = signal.pthread_sigmask(signal.SIG_BLOCK, signals)  # before there are threads: they inherit it
    failures: list[threading.ExceptHookArgs] = []
    threading.excepthook = lambda failure: _fail(failures, failure)
    try:
        server = XenStoreServer(time.monotonic, log=log.info)
        journal = None
        if options.state is not None:
            journal = JournalFile(options.state.absolute(), server, clock=time.monotonic, warn=log.warning)
        service = XenStoreService(server, save=journal.save if journal is not None else lambda: None)
        try:
            _listen(service, options.socket)
            facts = {"version": __version__, "socket": str(options.socket), "nodes": len(server.tree)}
            log.info("serving", extra={**facts, "state": str(options.state) if options.state else "in memory"})
            with service:
                number = signal.sigwait(signals)
        finally:
            if journal is not None:
                journal.close()
        if failures:
            return 1
        log.info("ended", extra={"signal": signal.Signals(number).name})
        return 0
    finally:
        threading.excepthook = threading.__excepthook__
        signal.pthread_sigmask(signal.SIG_SETMASK, former)


def _listen(service: XenStoreService, path: Path) -> None:
    try:
        service.listen(path)
    except OSError as error:
        raise ConfigurationError(str(path), error.strerror or str(error), "choose another --socket") from error


def _fail(failures: list[threading.ExceptHookArgs], failure: threading.ExceptHookArgs) -> None:
    """The thread that serves has failed: end the process, so that whoever watches it starts another."""
    failures.append(failure)
    log.error("the server failed", exc_info=failure.exc_value)
    os.kill(os.getpid(), signal.SIGTERM)
