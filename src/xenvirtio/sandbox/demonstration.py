"""The story of `xenvirtio demo`: three guests, a reboot, a crash, a backend killed under load, every byte verified.

Guests are threads over the emulated host, the backend is `xenvirtio serve` in a process of its own. A device is
verified only when its whole disk was read and found right twice: by its guest through the backend, and from the image
file after the backend has ended.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from random import Random

from xenvirtio.devices.block.layout import S_IOERR
from xenvirtio.errors import ResourceError, XenvirtioError
from xenvirtio.sandbox.backend import BackendProcess
from xenvirtio.sandbox.guest import GuestDisk
from xenvirtio.sandbox.system import SandboxSystem
from xenvirtio.sandbox.toolstack import CreatedGuest, DiskConfiguration
from xenvirtio.sandbox.workload import BLOCK_BYTES, DiskModel, Workload
from xenvirtio.xen.emulated import DataAbort, VcpuStopped

PATIENCE_S = 60.0
"""For what should take a moment: afterwards something is wrong and the demonstration says so."""

NO_DEVICE_ADDRESS = 0x0300_0000
"""Guest-physical, claimed by nobody."""

CONFIGURATION = """\
[daemon]
state_dir = "{state}"

[[device]]
guest = "beta"
type = "block"
resource = {{ file = "{images}/{{guest}}.img" }}
serial = "beta-0"
"""


class Chapter(Enum):
    """What is told next; the text belongs to the person who watches."""

    START = "start"
    LOAD = "load"
    REBOOT = "reboot"
    CRASH = "crash"
    KILL = "kill"
    GUEST_VERIFICATION = "verify in the guests"
    SHUTDOWN = "shut down"
    FILE_VERIFICATION = "verify the image files"


Teller = Callable[[Chapter, str], None]


@dataclass(frozen=True, slots=True)
class DiskPlan:
    image: str
    grants: bool
    read_only: bool = False
    from_configuration: bool = False
    """A virtio= entry, whose file stands in the TOML file, and not a disk= entry."""

    @property
    def kind(self) -> str:
        return ("virtio=" if self.from_configuration else "disk=") + (", ro" if self.read_only else "")

    @property
    def memory_mode(self) -> str:
        return "grants" if self.grants else "foreign"


GUESTS = {
    "alpha": (DiskPlan("alpha", grants=False),),
    "beta": (DiskPlan("beta", grants=True, from_configuration=True),),
    "gamma": (DiskPlan("gamma-system", grants=False, read_only=True), DiskPlan("gamma-data", grants=True)),
}


@dataclass(slots=True)
class DeviceReport:
    """What is to be said of one disk in the end."""

    type: str
    guest: str
    disk: str
    memory: str
    size_bytes: int
    requests: int = 0
    bytes_verified: int = 0
    """Read by the guest or from the image file, and right."""
    verified_in_guest: int = 0
    verified_in_file: int = 0
    events: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def verified(self) -> bool:
        return not self.problems and self.verified_in_guest == self.verified_in_file == self.size_bytes


@dataclass(slots=True)
class Report:
    devices: list[DeviceReport]
    problems: list[str]
    """Not of one device: a backend that ended badly, something left behind."""
    backend_kills: int
    seconds: float

    @property
    def ok(self) -> bool:
        return bool(self.devices) and not self.problems and all(device.verified for device in self.devices)


class _Disk:
    """One disk through all lives of its guest."""

    def __init__(self, guest: str, plan: DiskPlan, images: Path, size_bytes: int, random: Random) -> None:
        self.plan = plan
        self.path = images / f"{plan.image}.img"
        self.model = DiskModel(plan.image, size_bytes // BLOCK_BYTES)
        self.model.create_image(self.path)
        self.report = DeviceReport("block", guest, plan.kind, plan.memory_mode, size_bytes)
        self._random = random
        self._workload: Workload | None = None

    def configuration(self) -> DiskConfiguration:
        path = None if self.plan.from_configuration else self.path
        return DiskConfiguration(path, self.plan.grants, self.plan.read_only)

    def boot(self, guest: CreatedGuest, number: int) -> Workload:
        """Probe the disk in a new life of its guest."""
        self._count()
        disk = GuestDisk(guest, guest.devices[number], vcpu=number)
        if disk.capacity_sectors * 512 != self.report.size_bytes:
            self.model.fail(f"shows {disk.capacity_sectors} sectors")
        if self.plan.read_only and disk.block.write(0, bytes(512)).status != S_IOERR:
            self.model.fail("a write to the read-only disk was not refused")
        self._workload = Workload(
            self.model, disk.block, disk.wait, disk.features, self._random, read_only=self.plan.read_only
        )
        return self._workload

    def _count(self) -> None:
        if self._workload is not None:
            self.report.requests += self._workload.requests
            self.report.bytes_verified += self._workload.bytes_right
            self._workload = None

    def conclude(self) -> None:
        """Write down what the models found."""
        self._count()
        self.report.bytes_verified += self.report.verified_in_guest + self.report.verified_in_file
        self.report.problems += self.model.mismatches
        hidden = self.model.mismatch_count - len(self.model.mismatches)
        if hidden:
            self.report.problems.append(f"{self.plan.image}: {hidden} more problems")


class _Guest:
    """A guest by name: its domain now, and a thread for each disk while it works."""

    def __init__(self, name: str, disks: Sequence[_Disk], system: SandboxSystem) -> None:
        self.name = name
        self.disks = disks
        self._system = system
        self._threads: list[threading.Thread] = []
        self._stopping = threading.Event()
        self._is_crashing = False
        self.created: CreatedGuest | None = None

    @property
    def domain_id(self) -> int:
        assert self.created is not None
        return self.created.domid

    def create(self) -> None:
        configurations = [disk.configuration() for disk in self.disks]
        self.created = self._system.toolstack.create(self.name, configurations, vcpus=len(configurations))

    def destroy(self) -> None:
        assert self.created is not None
        self._system.toolstack.destroy(self.created)

    def is_gone(self) -> bool:
        assert self.created is not None
        return self._system.toolstack.is_gone(self.created)

    def start(self, *, verify: bool = False) -> None:
        """Boot, and do I/O until `stop`; with `verify` read the whole disks instead."""
        assert self.created is not None
        self._stopping = threading.Event()
        self._is_crashing = False
        self._threads = [
            threading.Thread(target=self._live, args=(self.created, number, verify), name=disk.plan.image, daemon=True)
            for number, disk in enumerate(self.disks)
        ]
        for thread in self._threads:
            thread.start()

    def _live(self, created: CreatedGuest, number: int, verify: bool) -> None:
        disk = self.disks[number]
        try:
            workload = disk.boot(created, number)
            if verify:
                disk.report.verified_in_guest = workload.verify_all()
            else:
                workload.run(self._stopping.is_set)
                workload.flush()
        except VcpuStopped as error:
            if not self._is_crashing:
                disk.model.fail(f"the guest came to an end: {error}")
        except Exception as error:
            disk.model.fail(f"the guest's driver failed: {type(error).__name__}: {error}")

    def stop(self) -> None:
        """Let the guest finish its I/O and flush."""
        self._stopping.set()
        self.join()

    def join(self) -> None:
        """Wait for the end of the guest's threads.

        Raises:
            ResourceError: the guest hangs.
        """
        deadline = time.monotonic() + PATIENCE_S
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                raise ResourceError(f"guest {self.name} hangs in its I/O on {thread.name}")

    def crash(self) -> None:
        """Touch an address where no device is, with I/O in flight."""
        assert self.created is not None
        self._is_crashing = True
        try:
            self.created.domain.vcpu(0).mmio_read(NO_DEVICE_ADDRESS, 4)
        except DataAbort:
            self.join()
        else:
            raise ResourceError("an access to nowhere was answered")

    def note(self, event: str) -> None:
        for disk in self.disks:
            disk.report.events.append(event)


class Demonstration:
    """Plays the story in `directory`, which stays as it is afterwards: images, configuration, `backend.log`."""

    def __init__(
        self, directory: Path, *, seconds: float, disk_bytes: int, kills: int, seed: int, tell: Teller
    ) -> None:
        self._directory = directory
        self._seconds = seconds
        self._kills = kills
        self._tell = tell
        self._images = directory / "images"
        self._state = directory / "state"
        for folder in (self._images, self._state):
            folder.mkdir(parents=True)
        self._configuration = directory / "backends.toml"
        self._configuration.write_text(CONFIGURATION.format(state=self._state, images=self._images))
        self._disks = {
            name: [_Disk(name, plan, self._images, disk_bytes, Random(f"{seed} {plan.image}")) for plan in plans]
            for name, plans in GUESTS.items()
        }
        self._problems: list[str] = []

    def run(self) -> Report:
        """Play it to the end, whatever happens; the report says what was not right."""
        started = time.monotonic()
        try:
            # a directory of their own: the path of a socket may not be longer than 107 bytes
            with tempfile.TemporaryDirectory(prefix="xenvirtio-") as sockets, SandboxSystem(Path(sockets)) as system:
                backend = BackendProcess(system.directory, self._configuration, self._directory / "backend.log")
                try:
                    self._play(system, backend)
                finally:
                    backend.close()
                    self._look_at_log(backend)
            self._verify_files()
        except (XenvirtioError, OSError) as error:
            self._problems.append(str(error))
        disks = [disk for disks in self._disks.values() for disk in disks]
        for disk in disks:
            disk.conclude()
        return Report([disk.report for disk in disks], self._problems, self._kills, time.monotonic() - started)

    def _play(self, system: SandboxSystem, backend: BackendProcess) -> None:
        guests = {name: _Guest(name, disks, system) for name, disks in self._disks.items()}
        alpha, beta, gamma = guests.values()
        self._tell(Chapter.START, "an emulated Xen host with XenStore, and `xenvirtio serve` in a process of its own")
        backend.start()
        for guest in guests.values():
            guest.create()
            guest.start()
        self._tell(Chapter.LOAD, "alpha, beta and gamma read, write, flush, discard: 4 disks, 8 requests at once each")
        quarter_s = self._seconds / 4
        self._let_work(quarter_s, backend)
        self._reboot(alpha)
        self._let_work(quarter_s, backend)
        self._crash(beta)
        self._let_work(quarter_s, backend)
        for number in range(self._kills):
            self._kill(backend, number)
            self._let_work(quarter_s / self._kills, backend)
        for guest in (alpha, beta, gamma):
            guest.note(f"{self._kills} kill" + "s" * (self._kills > 1))
        self._verify_in_guests(list(guests.values()))
        self._shut_down(system, backend, list(guests.values()))

    @staticmethod
    def _let_work(seconds: float, backend: BackendProcess) -> None:
        time.sleep(seconds)
        if backend.has_ended:
            raise ResourceError(f"the backend has ended by itself, see {backend.log_path}")

    def _reboot(self, guest: _Guest) -> None:
        before = guest.domain_id
        guest.stop()
        guest.destroy()
        guest.create()
        guest.start()
        self._tell(Chapter.REBOOT, f"{guest.name} rebooted: domain {before} is now domain {guest.domain_id}")
        guest.note("reboot")

    def _crash(self, guest: _Guest) -> None:
        before = guest.domain_id
        guest.crash()
        guest.destroy()
        guest.create()
        guest.start()
        self._tell(
            Chapter.CRASH,
            f"{guest.name} crashed with writes in flight: domain {before} is now domain {guest.domain_id}",
        )
        guest.note("crash")

    def _kill(self, backend: BackendProcess, number: int) -> None:
        pid = backend.pid
        backend.kill()
        started = time.monotonic()
        backend.start()
        pause_ms = 1000 * (time.monotonic() - started)
        self._tell(
            Chapter.KILL,
            f"kill -9 of the backend under load ({number + 1} of {self._kills}): process {pid} is gone, {backend.pid} "
            f"took over after {pause_ms:.0f} ms, the guests only waited",
        )

    def _verify_in_guests(self, guests: list[_Guest]) -> None:
        for guest in guests:
            guest.stop()
        self._tell(Chapter.GUEST_VERIFICATION, "every guest reads its disks from the first byte to the last")
        for guest in guests:
            guest.start(verify=True)
        for guest in guests:
            guest.join()

    def _shut_down(self, system: SandboxSystem, backend: BackendProcess, guests: list[_Guest]) -> None:
        self._tell(Chapter.SHUTDOWN, "the guests are destroyed and the backend is asked to end")
        for guest in guests:
            guest.destroy()
        for guest in guests:
            if not system.toolstack.wait_for(guest.is_gone):
                self._problems.append(f"domain {guest.domain_id} ({guest.name}) stayed behind as a zombie")
        system.toolstack.wait_for(lambda: not self._state_files())
        self._problems += [f"{path} was left behind" for path in self._state_files()]
        exit_code = backend.terminate()
        if exit_code:
            self._problems.append(f"the backend ended with exit code {exit_code}, see {backend.log_path}")

    def _state_files(self) -> list[Path]:
        return sorted(self._state.glob("*.state"))

    def _verify_files(self) -> None:
        self._tell(Chapter.FILE_VERIFICATION, "the image files are read as plain files, without xenvirtio")
        for disks in self._disks.values():
            for disk in disks:
                disk.report.verified_in_file = disk.model.check_file(disk.path)

    def _look_at_log(self, backend: BackendProcess) -> None:
        """The backend has no reason to complain in this story."""
        for line in backend.log():
            if line["level"] not in ("debug", "info"):
                self._problems.append(f"the backend said: {line['message']}")
