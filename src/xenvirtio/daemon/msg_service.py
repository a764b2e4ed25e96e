"""Serves the device end of a virtio-msg bus: waits, has the bus work, begins anew when the other end is broken."""

from __future__ import annotations

import logging
import os
import select
import threading

from xenvirtio.daemon.msg_carrier import Carrier
from xenvirtio.daemon.msg_host import MsgDeviceHost
from xenvirtio.errors import PeerProtocolError, XenvirtioError
from xenvirtio.virtio.device import Device
from xenvirtio.virtio.transports.msg_bus import DeviceBus

log = logging.getLogger("xenvirtio.msg")

REMIND_S = 1.0
"""How often an end that waits for the other one looks again, in case its announcement met nobody."""

RETRY_S = 0.05
"""How often what found no room is tried again, where the carrier cannot say that there is room."""

PENALTY_S = 1.0
"""What a broken or hostile other end waits before it is talked to again; without it the two could spin."""


class BusService:
    """One bus of domain-to-domain devices, its own thread or the caller's. Owns `carrier`."""

    def __init__(self, carrier: Carrier, name: str) -> None:
        self.name = name
        self._carrier = carrier
        self.bus = DeviceBus(carrier.link, name=name)
        self.hosts: list[MsgDeviceHost] = []
        self._stop_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._stopping = False
        self._thread: threading.Thread | None = None
        self._problem: XenvirtioError | None = None

    def add(self, name: str, device: Device, number: int) -> None:
        """Put a device on the bus; before `run`."""
        self.hosts.append(MsgDeviceHost(name, device, self.bus, number, self._carrier.dma_space()))

    def start(self) -> None:
        """Serve in a thread of its own."""
        self._thread = threading.Thread(target=self._run_thread, name=self.name, daemon=True)
        self._thread.start()

    def _run_thread(self) -> None:
        try:
            self.run()
        except XenvirtioError as error:
            log.error("%s: serving has ended: %s", self.name, error)
            self._problem = error

    def run(self) -> None:
        """Serve until `stop`."""
        self.bus.announce()
        try:
            while not self._stopping:
                self._serve()
                self._wait()
        finally:
            self.bus.close()

    def _serve(self) -> None:
        try:
            while self.bus.serve() and not self._stopping:
                pass
        except PeerProtocolError as error:
            log.warning("%s: the session is closed: %s", self.name, error)
            select.select([self._stop_fd], [], [], PENALTY_S)
            if not self._stopping:
                self.bus.announce()
        if not self.bus.is_open:
            self.bus.remind()

    def _wait(self) -> None:
        timeout = RETRY_S if self.bus.has_pending else None if self.bus.is_open else REMIND_S
        # what a driver asks before it takes its last answer has to wait: its requests must not wake us
        sources = [self._stop_fd] if self.bus.is_choked else [self._stop_fd, self._carrier.fileno()]
        select.select(sources, [], [], timeout)
        self._carrier.take_events()

    @property
    def is_running(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def stop(self) -> None:
        """Have `run` return; from any thread, or a signal handler."""
        self._stopping = True
        os.eventfd_write(self._stop_fd, 1)

    def close(self) -> None:
        """Stop, and give everything up.

        Raises:
            XenvirtioError: what ended the thread before.
        """
        self.stop()
        if self._thread is not None:
            self._thread.join()
        else:
            self.bus.close()
        self._carrier.close()
        os.close(self._stop_fd)
        if self._problem is not None:
            raise self._problem
