"""A sandbox with a backend process, images whose content is modelled, and guests that do verified I/O in threads."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

from xenvirtio.sandbox.backend import BackendProcess
from xenvirtio.sandbox.guest import GuestDisk
from xenvirtio.sandbox.system import SandboxSystem
from xenvirtio.sandbox.toolstack import CreatedGuest, DiskConfiguration, Toolstack
from xenvirtio.sandbox.workload import BLOCK_BYTES, DiskModel, Workload
from xenvirtio.xen.emulated import VcpuStopped

BLOCKS = 64
PATIENCE_S = 30.0


class Image:
    """An image file and what it may hold."""

    def __init__(self, path: Path, blocks: int = BLOCKS) -> None:
        self.path = path
        self.model = DiskModel(path.stem, blocks)
        self.model.create_image(path)

    def disk(self, *, grants: bool = False, read_only: bool = False, **keys: str) -> DiskConfiguration:
        return DiskConfiguration(self.path, grants, read_only, keys)

    def assert_right(self) -> None:
        right = self.model.check_file(self.path)
        assert self.model.mismatches == []
        assert right == self.model.blocks * BLOCK_BYTES


class GuestIo:
    """Verified I/O of a guest on one of its disks, until `stop` or the guest's end."""

    def __init__(self, guest: CreatedGuest, image: Image, number: int = 0, *, read_only: bool = False) -> None:
        self.image = image
        self.died = False
        self.error: BaseException | None = None
        self.workload: Workload | None = None
        self._guest, self._number, self._read_only = guest, number, read_only
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        Toolstack.wait_for(lambda: self.requests > 0 or not self._thread.is_alive(), PATIENCE_S)

    @property
    def requests(self) -> int:
        return self.workload.requests if self.workload else 0

    def _run(self) -> None:
        try:
            disk = GuestDisk(self._guest, self._guest.devices[self._number], vcpu=self._number)
            self.workload = Workload(
                self.image.model, disk.block, disk.wait, disk.features, Random(1), read_only=self._read_only
            )
            self.workload.run(self._stopping.is_set)
            self.workload.flush()
        except VcpuStopped:
            self.died = True
        except BaseException as error:
            self.error = error

    def progress(self, requests: int = 20) -> None:
        """Wait until so many more requests were served."""
        wanted = self.requests + requests
        assert Toolstack.wait_for(lambda: self.requests >= wanted, PATIENCE_S), "the guest hangs"

    def stop(self) -> None:
        """Finish, flush, and insist that nothing was wrong."""
        self._stopping.set()
        self.join()
        assert not self.died
        assert self.image.model.mismatches == []

    def join(self) -> None:
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive(), "the guest hangs"
        if self.error is not None:
            raise self.error


class Rig:
    """`toml` is the configuration after `[daemon] state_dir`."""

    def __init__(self, directory: Path, system: SandboxSystem, toml: str = "", *, start: bool = True) -> None:
        self.directory = directory
        self.system = system
        self.state = directory / "state"
        self.toml = directory / "backends.toml"
        self.configure(toml)
        self.backend = BackendProcess(directory, self.toml, directory / "backend.log")
        if start:
            self.backend.start()

    def configure(self, toml: str) -> None:
        self.toml.write_text(f'[daemon]\nstate_dir = "{self.state}"\n{toml}')

    def image(self, name: str = "disk", blocks: int = BLOCKS) -> Image:
        return Image(self.directory / f"{name}.img", blocks)

    def create(self, name: str, *disks: DiskConfiguration, wait: bool = True) -> CreatedGuest:
        return self.system.toolstack.create(name, disks, vcpus=max(len(disks), 1), wait=wait)

    def destroy(self, guest: CreatedGuest) -> None:
        """Destroy a guest and insist that nothing of it stays."""
        self.system.toolstack.destroy(guest)
        self.until(lambda: self.system.toolstack.is_gone(guest))
        self.until(lambda: not self.state_files(guest))

    def state_files(self, guest: CreatedGuest) -> list[Path]:
        return list(self.state.glob(f"guest-{guest.domid}.state"))

    def complaints(self) -> list[str]:
        """Everything the backend has said above level info."""
        return [line["message"] for line in self.backend.log() if line["level"] not in ("debug", "info")]

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.backend.pid}/fd"))

    def threads(self) -> int:
        return len(os.listdir(f"/proc/{self.backend.pid}/task"))

    def mappings(self) -> int:
        """Mappings of guest memory and IOREQ pages."""
        return Path(f"/proc/{self.backend.pid}/maps").read_text().count("memfd:xen-")

    @staticmethod
    def until(condition: Callable[[], bool]) -> None:
        assert Toolstack.wait_for(condition, PATIENCE_S), "the condition did not come true"


@contextmanager
def open_rig(directory: Path, toml: str = "", *, start: bool = True) -> Iterator[Rig]:
    with SandboxSystem(directory) as system:
        rig = Rig(directory, system, toml, start=start)
        try:
            yield rig
        finally:
            rig.backend.close()
