"""Brings the emulated host, its XenStore and its toolstack up in a directory, and down again."""

from __future__ import annotations

import time
from pathlib import Path

from xenvirtio.sandbox.toolstack import Toolstack
from xenvirtio.xen.emulated import EmulatedHost
from xenvirtio.xenstore.client import XenStoreClient
from xenvirtio.xenstore.serve import XenStoreService
from xenvirtio.xenstore.server import XenStoreServer
from xenvirtio.xenstore.snapshot import dump, restore

HYPERVISOR_SOCKET = "hypervisor"
XENSTORE_SOCKET = "xenstore"


class SandboxSystem:
    """A running system; backends reach it by the sockets in `directory` (`xenvirtio serve --emulated DIR`)."""

    def __init__(self, directory: Path, *, host: EmulatedHost | None = None) -> None:
        self.directory = directory
        self.host = EmulatedHost() if host is None else host
        self._start_store(XenStoreServer(time.monotonic))
        self.host.listen(directory / HYPERVISOR_SOCKET)
        self.store = XenStoreClient.at(directory / XENSTORE_SOCKET)
        self.store.write("/local/domain/0/domid", "0")
        self.store.write("/local/domain/0/name", "Domain-0")
        self.toolstack = Toolstack(self.host, self.store)

    def _start_store(self, server: XenStoreServer) -> None:
        self._store_server = server
        self.store_service = XenStoreService(server)
        self.store_service.start()
        self.store_service.listen(self.directory / XENSTORE_SOCKET)

    def restart_store(self, away_s: float = 0.0) -> None:
        """Stop XenStore, and start another with the same nodes after a while. Clients have to connect again."""
        self.store_service.stop()
        time.sleep(away_s)
        server = XenStoreServer(time.monotonic)
        restore(server, dump(self._store_server))
        self._start_store(server)

    def __enter__(self) -> SandboxSystem:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Power off: guests end, backends lose host and store."""
        self.store.close()
        self.host.close()
        self.store_service.stop()
