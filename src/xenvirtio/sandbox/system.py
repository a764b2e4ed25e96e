"""Brings the emulated host, its XenStore and its toolstack up in a directory, and down again."""

from __future__ import annotations

from pathlib import Path

from xenvirtio.sandbox.toolstack import Toolstack
from xenvirtio.xen.emulated import EmulatedHost
from xenvirtio.xenstore.client import XenStoreClient
from xenvirtio.xenstore.serve import XenStoreService

HYPERVISOR_SOCKET = "hypervisor"
XENSTORE_SOCKET = "xenstore"


class SandboxSystem:
    """A running system; backends reach it by the sockets in `directory` (`xenvirtio serve --emulated DIR`)."""

    def __init__(self, directory: Path, *, host: EmulatedHost | None = None) -> None:
        self.directory = directory
        self.host = EmulatedHost() if host is None else host
        self.store_service = XenStoreService()
        self.store_service.start()
        self.store_service.listen(directory / XENSTORE_SOCKET)
        self.host.listen(directory / HYPERVISOR_SOCKET)
        self.store = XenStoreClient.at(directory / XENSTORE_SOCKET)
        self.store.write("/local/domain/0/domid", "0")
        self.store.write("/local/domain/0/name", "Domain-0")
        self.toolstack = Toolstack(self.host, self.store)

    def __enter__(self) -> SandboxSystem:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Power off: guests end, backends lose host and store."""
        self.store.close()
        self.host.close()
        self.store_service.stop()
