"""Machines in every condition: a tree of files and the answers its probes give."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from xenvirtio.doctor.answers import Answers, Step
from xenvirtio.doctor.checks import ALL
from xenvirtio.doctor.finding import Finding
from xenvirtio.doctor.machine import Machine

READY = "18: 5 xen-dyn -event xenbus\n"
LATE = "18: 5 xen-dyn -event xenstore_late_init\n"

NODES = ("privcmd", "evtchn", "gntdev", "gntalloc", "xenbus", "xenbus_backend")

SILO_XEN = "CONFIG_IOREQ_SERVER=y\nCONFIG_XSM=y\nCONFIG_XSM_SILO=y\nCONFIG_XSM_SILO_DEFAULT=y\n"
NO_IOREQ_XEN = SILO_XEN.replace("CONFIG_IOREQ_SERVER=y", "# CONFIG_IOREQ_SERVER is not set")

WHOLE_KERNEL = "".join(
    f"CONFIG_{name}=y\n"
    for name in (
        *("XEN", "XEN_PRIVCMD", "XEN_DEV_EVTCHN", "XEN_GNTDEV", "XEN_GRANT_DEV_ALLOC", "XENFS"),
        *("XEN_PRIVCMD_EVENTFD", "XEN_VIRTIO", "XEN_BACKEND"),
    )
)

EINVAL, EPERM, EACCES, ENOENT, ESRCH, ENOSPC, ENOTTY = 22, 1, 13, 2, 3, 28, 25
EOPNOTSUPP, ENOSYS, ETIMEDOUT, ECONNREFUSED = 95, 38, 110, 111


def good_probes() -> dict[str, Answers]:
    """What the probes say in a dom0 that has everything."""
    return {
        "nodes": Answers.of(*(Step(name) for name in ("evtchn", "gntdev", "grant_copy", "gntalloc", "xenbus"))),
        "privcmd": Answers.of(
            Step("privcmd"),
            Step("irqfd", EINVAL),
            Step("hypercall", value="262164"),
            Step("command_line", value="console=dtuart dom0_mem=768M"),
            Step("xen_config", value=SILO_XEN),
        ),
        "xenstore": Answers.of(
            *(
                Step("socket"),
                Step("connect"),
                Step("domid", value="0"),
                Step("target", ENOENT),
                Step("guest", value="7"),
            )
        ),
        "kernel": Answers.of(Step("eventfd"), Step("io_uring")),
        "ioreq": Answers.of(
            *(Step("privcmd"), Step("hypercall", value="262164"), Step("restrict"), Step("nr_vcpus", value="2")),
            *(Step("create", value="0"), Step("map"), Step("destroy")),
        ),
    }


@dataclass
class World:
    """A machine to break; `asked` is what its probes were asked."""

    root: Path
    probes: dict[str, Answers] = field(default_factory=good_probes)
    asked: list[tuple[str, tuple[str, ...]]] = field(default_factory=list)

    def write(self, path: str, text: str) -> None:
        file = self.root / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def remove(self, path: str) -> None:
        (self.root / path.lstrip("/")).unlink()

    def answer(self, probe: str, *steps: Step) -> None:
        """Replace steps of a probe, or add them."""
        self.probes[probe] = Answers({**self.probes[probe].steps, **{step.name: step for step in steps}})

    def machine(self, guest: str | None = None, **facts: object) -> Machine:
        def probe(name: str, arguments: Sequence[str]) -> Answers:
            self.asked.append((name, tuple(arguments)))
            return self.probes[name]

        settled: dict[str, object] = {
            "root": self.root,
            "probe": probe,
            "environment": {},
            "architecture": "aarch64",
            "kernel_release": "6.12.0",
            "page_bytes": 4096,
            "free_bytes": lambda path: 1 << 30,
        }
        return Machine(guest, **(settled | facts))  # type: ignore[arg-type]

    def findings(self, guest: str | None = None, **facts: object) -> dict[str, Finding]:
        machine = self.machine(guest, **facts)
        return {finding.name: finding for finding in (check(machine) for check in ALL)}


def bare(root: Path) -> World:
    """No Xen."""
    world = World(root)
    world.write("/run/utmp", "")
    return world


def dom0(root: Path) -> World:
    """A dom0 that has everything."""
    world = bare(root)
    world.write("/sys/hypervisor/type", "xen\n")
    for part, text in (("major", "4"), ("minor", "20"), ("extra", ".4-pre")):
        world.write(f"/sys/hypervisor/version/{part}", f"{text}\n")
    world.write("/proc/xen/capabilities", "control_d\n")
    world.write("/proc/interrupts", READY)
    world.write("/proc/mounts", "/dev/vda / ext4 rw 0 0\ntmpfs /run tmpfs rw 0 0\n")
    world.write("/boot/config-6.12.0", WHOLE_KERNEL)
    world.write("/run/xenstored/socket", "")
    for name in NODES:
        world.write(f"/dev/xen/{name}", "")
    return world


def domu(root: Path, *, target: str | None = None) -> World:
    """A domU with XenStore through its kernel, and perhaps a guest it may serve."""
    world = dom0(root)
    world.write("/proc/xen/capabilities", "")
    world.remove("/run/xenstored/socket")
    probes = world.probes
    key = Step("target", ENOENT) if target is None else Step("target", value=target)
    probes["xenstore"] = Answers.of(Step("connect"), Step("domid", value="3"), key)
    world.answer(
        "privcmd",
        Step("hypercall", EPERM),
        Step("command_line", EPERM),
        Step("xen_config", EPERM),
        Step("irqfd", EPERM),
    )
    world.answer("ioreq", Step("hypercall", EPERM))
    return world
