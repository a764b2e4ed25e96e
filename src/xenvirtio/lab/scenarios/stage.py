"""What a scenario plays on: the machine, dom0, the toolstack, and the daemons it started."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from xenvirtio.errors import XenvirtioError
from xenvirtio.lab.backend import LINES_SHOWN, Backend
from xenvirtio.lab.dom0 import Dom0
from xenvirtio.lab.machine import Machine
from xenvirtio.lab.toolstack import Disk, MemoryMode, Toolstack

DISK_FOLDER = "/srv/lab/disks"


@dataclass(frozen=True, slots=True)
class Stage:
    """One play of one scenario in one memory mode."""

    machine: Machine
    dom0: Dom0
    toolstack: Toolstack
    mode: MemoryMode
    backends: list[Backend] = field(default_factory=list)

    @contextmanager
    def serve(self, devices: str = "", *, expected_warnings: Sequence[str] = ()) -> Iterator[Backend]:
        """A daemon of this scenario's own, with a fresh state folder and log.

        At the end it must leave on SIGTERM with status 0 and have warned of nothing but `expected_warnings`
        (regular expressions). When the scenario fails it is left running, for the report and so that guests go quickly.
        """
        backend = Backend(self.dom0, f"daemon{len(self.backends)}", devices)
        self.backends.append(backend)
        backend.start()
        yield backend
        backend.stop()
        unexpected = [w for w in backend.warnings() if not any(re.search(e, w) for e in expected_warnings)]
        assert not unexpected, "the daemon warned:\n" + "\n".join(unexpected)

    def disk(self, name: str, size_mib: int) -> Disk:
        """A new disk of zeros in dom0, for a guest in this memory mode."""
        path = f"{DISK_FOLDER}/{name}.img"
        self.toolstack.make_disk(path, size_mib)
        return Disk(path, mode=self.mode)

    def set_up(self) -> None:
        """Forget what earlier scenarios left; no guest may be there."""
        for kind in ("virtio", "virtio_disk"):
            self.dom0.run(f"xenstore-rm /local/domain/0/backend/{kind}", check=False)
        self.dom0.run(f"rm -rf {DISK_FOLDER} /var/log/xen/guest-*.log; mkdir -p {DISK_FOLDER} /run/lab")

    def evidence(self) -> dict[str, str]:
        """The last lines of the daemons' logs, the guests' consoles and Xen's messages."""
        found = {}
        commands = {f"{backend.name}.log": f"tail -n {LINES_SHOWN} {backend.log_path}" for backend in self.backends}
        commands["guests"] = f"cd /var/log/xen && tail -n {LINES_SHOWN} guest-*.log"
        commands["xl dmesg"] = f"xl dmesg | tail -n {LINES_SHOWN}"
        commands["xl list"] = "xl list; xl vcpu-list"
        for name, command in commands.items():
            try:
                found[name] = self.dom0.run(command, check=False).output
            except XenvirtioError as error:
                found[name] = f"(not to be had: {error})"
        return found

    def tear_down(self) -> None:
        """Destroy all guests while a daemon is there to see them go, then end the daemons, by force where needed."""
        for row in self.toolstack.domains():
            if row.domid != 0:
                self.dom0.run(f"xl destroy {row.domid}", check=False)
        for backend in self.backends:
            if backend.is_running():
                backend.signal("TERM")
                if not backend.wait_ended():
                    backend.kill()

    def is_clean(self) -> bool:
        """Whether nothing but dom0 is left, so that the next scenario starts as the first did."""
        try:
            self.toolstack.wait_only_dom0()
        except XenvirtioError:
            return False
        return not any(backend.is_running() for backend in self.backends)
