"""An emulated host with two domains that share a region and a channel, and processes that are the two ends."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from xenvirtio.ids import DomId, EventPort, RemotePort
from xenvirtio.static.plan import Channel, Plan, PlannedDevice, Region, Role, Transport, encode_plan
from xenvirtio.virtio.device import DeviceType
from xenvirtio.xen.emulated import EmulatedHost

PATIENCE_S = 60.0
REGION_BYTES = 1 << 20
DISK_BYTES = 4 << 20
USER, SERVER = "user", "server"


class TwoDomains:
    """`user` uses `disk0` of `server`, over static memory; `dom0` uses `disk1` over Argo. SILO rules, as on Arm."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.host = EmulatedHost(silo=True)
        self.user = self.host.create_domain(memory_bytes=4 << 20).domid
        self.server = self.host.create_domain(memory_bytes=4 << 20).domid
        self.region = self.host.add_static_region("shm", REGION_BYTES, [self.user, self.server])
        self.host.add_static_channel(self.user, 10, self.server, 11)
        self.host.listen(directory / "hypervisor")
        self.image = directory / "disk.img"
        with self.image.open("wb") as file:
            file.truncate(DISK_BYTES)
        self._write_plans()
        self._processes: list[subprocess.Popen[bytes]] = []

    def _write_plans(self) -> None:
        domains = {"dom0": DomId(0), USER: self.user, SERVER: self.server}
        ends = (
            (USER, self.user, 10, SERVER, 11, Role.FRONTEND),
            (SERVER, self.server, 11, USER, 10, Role.BACKEND),
        )
        for name, domid, port, peer, peer_port, role in ends:
            disk = PlannedDevice(
                "disk0", DeviceType.BLOCK, role, peer, 0, Transport.MSG_STATIC, region="shm", channel="bus"
            )
            argo = PlannedDevice("disk1", DeviceType.BLOCK, role, "dom0", 5, Transport.MSG_ARGO, argo_port=0x200)
            plan = Plan(
                name,
                domid,
                "test",
                domains,
                (Region("shm", 0x8000000, REGION_BYTES),),
                (Channel("bus", EventPort(port), peer, RemotePort(peer_port)),),
                (disk, argo) if name == USER else (disk,),
            )
            self.plan_path(name).write_text(encode_plan(plan))
        argo = PlannedDevice("disk1", DeviceType.BLOCK, Role.BACKEND, USER, 5, Transport.MSG_ARGO, argo_port=0x200)
        self.plan_path("dom0").write_text(encode_plan(Plan("dom0", DomId(0), "test", domains, devices=(argo,))))

    def plan_path(self, name: str) -> Path:
        return self.directory / f"plan-{name}.toml"

    def command(self, domain: str, *arguments: str) -> list[str]:
        plan = str(self.plan_path(domain))
        return [sys.executable, "-m", "xenvirtio", "msg", *arguments, "--plan", plan, "--emulated", str(self.directory)]

    def start(self, domain: str, *arguments: str) -> subprocess.Popen[bytes]:
        """Start `xenvirtio msg ...` as a process of that domain."""
        number = len(self._processes)
        with (self.directory / f"log-{number}").open("wb") as log:
            process = subprocess.Popen(
                self.command(domain, *arguments), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log
            )
        self._processes.append(process)
        return process

    def serve(self) -> subprocess.Popen[bytes]:
        return self.start(SERVER, "serve", "disk0", "--file", str(self.image))

    def run(self, domain: str, *arguments: str, data: bytes = b"", code: int = 0) -> tuple[bytes, str]:
        """Run a command to its end; return what it wrote to standard output and error."""
        done = subprocess.run(
            self.command(domain, *arguments), input=data, capture_output=True, timeout=PATIENCE_S, check=False
        )
        assert done.returncode == code, done.stderr.decode()
        return done.stdout, done.stderr.decode()

    def log(self, process: subprocess.Popen[bytes]) -> str:
        return (self.directory / f"log-{self._processes.index(process)}").read_text()

    def wait_for_log(self, process: subprocess.Popen[bytes], text: str) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while text not in self.log(process):
            assert process.poll() is None, self.log(process)
            assert time.monotonic() < deadline, self.log(process)
            time.sleep(0.01)

    @staticmethod
    def finish(process: subprocess.Popen[bytes]) -> str:
        """Wait for a process that ends by itself; return its standard output."""
        output, _ = process.communicate(timeout=PATIENCE_S)
        return output.decode()

    def close(self) -> None:
        for process in self._processes:
            if process.poll() is None:
                process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()
        self.host.close()


def cpu_seconds(process: subprocess.Popen[bytes]) -> float:
    """CPU time that a process has used so far."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
