"""The loop of `xenvirtio control`: keeps the store and the backend running, and domains introduced."""

from __future__ import annotations

import logging
import os
import select
import signal
from collections.abc import Sequence

from xenvirtio.control.children import Child
from xenvirtio.control.introducer import Introducer
from xenvirtio.errors import ResourceError, UsageError, XenvirtioError
from xenvirtio.xenstore.client import XenStoreClient

log = logging.getLogger("xenvirtio.control")

LOOK_S = 5.0
"""Between two looks at Xen's list when no event asks for one: a domain that never was in XenStore dies in silence."""

RETRY_S = 1.0
READY_STEP_S = 0.25
INTRODUCE_DOMAIN, RELEASE_DOMAIN = "@introduceDomain", "@releaseDomain"
WRONG_USAGE = 2


class Keeper:
    """Runs until `stop`. `children` are started in their order; the first one may be the store itself."""

    def __init__(self, introducer: Introducer, store: XenStoreClient, children: Sequence[Child]) -> None:
        self._introducer = introducer
        self._store = store
        self._children = list(children)
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._stopping = False
        self._hang_up = False
        self._is_behind = False
        self._unwatched = [INTRODUCE_DOMAIN, RELEASE_DOMAIN]

    def stop(self) -> None:
        """Make `run` return soon. Safe from a signal handler."""
        self._stopping = True
        os.eventfd_write(self._wake, 1)

    def hang_up(self) -> None:
        """Pass SIGHUP on to the children that take it and look again, soon. Safe from a signal handler."""
        self._hang_up = True
        os.eventfd_write(self._wake, 1)

    def run(self) -> None:
        """Keep everything going until `stop`; then end the children, the last one first.

        Raises:
            ResourceError: a child cannot even start.
        """
        try:
            for child in self._children:
                child.start()
            if self._wait_for_store():
                self._look()
                log.info("ready")
                while not self._stopping:
                    self._step()
        finally:
            for child in reversed(self._children):
                child.stop()
            os.close(self._wake)

    def _wait_for_store(self) -> bool:
        """Wait until XenStore answers; False when told to stop meanwhile."""
        while not self._stopping:
            if self._store.wait_ready(READY_STEP_S):
                return True
            for child in self._children:
                child.check()
                if child.last_code == WRONG_USAGE and child.starts > 2:
                    raise ResourceError(f"{child.name} cannot start; what it said stands above")
        return False

    def _step(self) -> None:
        watched = [self._store.fileno(), self._wake, *(child.fileno() for child in self._children)]
        poller = select.poll()
        for descriptor in watched:
            if descriptor >= 0:
                poller.register(descriptor, select.POLLIN)
        due = [RETRY_S if self._is_behind else LOOK_S]
        due += [wait_s for child in self._children if (wait_s := child.due_in_s()) is not None]
        ready = {descriptor for descriptor, _ in poller.poll(min(due) * 1000)}
        if self._wake in ready:
            os.eventfd_read(self._wake)
        for child in self._children:
            child.check()
        is_asked, self._hang_up = self._hang_up, False
        if is_asked:
            for child in self._children:
                if child.takes_hang_up:
                    child.send(signal.SIGHUP)
        if self._store.pump() or not ready or is_asked:
            self._look()

    def _look(self) -> None:
        try:
            while self._unwatched:
                self._store.watch(self._unwatched[-1], self._unwatched[-1])
                self._unwatched.pop()
            self._is_behind = bool(self._introducer.reconcile().failed)
        except UsageError:
            raise
        except XenvirtioError as error:
            self._is_behind = True
            log.warning("could not look at the domains: %s", error)
