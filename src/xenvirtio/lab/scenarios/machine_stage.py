"""What a scenario plays on that boots machines of its own.

    from xenvirtio.lab.options import Dom0Root, MachineOptions, XenStoreChoice
    from xenvirtio.lab.scenarios.machine_stage import MachineStage
    from xenvirtio.lab.scenarios.registry import MachineScenario

    def run(stage: MachineStage) -> dict[str, Any]:
        light = MachineOptions(root=Dom0Root.LIGHT, xenstore=XenStoreChoice.NONE)
        with stage.boot(light) as machine:                      # dom0 is up; stopped whatever happens
            dom0 = machine.dom0()
            control = dom0.spawn("xenvirtio control", "/run/lab/control.log")
            dom0.run("xenvirtio store tree /")

        ours = MachineOptions(xenstore=XenStoreChoice.OURS)     # dom0 with xl over our store
        with stage.boot(ours) as machine:
            inner = stage.with_toolstack(machine)               # what ordinary scenarios get
            with inner.serve():
                inner.toolstack.create(GuestConfig("one", disks=(inner.disk("one", 8),)))

        system = stage.build_system(SYSTEM_TOML, {"start.py": START})   # static build; files for its domains
        with stage.boot(MachineOptions(system=system)) as machine:
            machine.wait_line(1, "GUEST: .*ready")              # a domain's console, by domid
            machine.domain_lines(2)                             # all it said
        return {"facts": "for the report"}

    SCENARIO = MachineScenario("name", "what must hold", run)

One machine at a time unless the story needs two (`name=` tells them apart): the lab counts on two processors. When a
scenario fails, the report has the end of the machine's serial log, of QEMU's, of each dom0less domain's console and, if
dom0 answers, of every file matching `EVIDENCE_FILES`: log there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from xenvirtio.errors import XenvirtioError
from xenvirtio.lab.backend import LINES_SHOWN
from xenvirtio.lab.boot import wait_usable
from xenvirtio.lab.built_system import BuiltSystem
from xenvirtio.lab.machine import Machine
from xenvirtio.lab.options import MachineOptions
from xenvirtio.lab.scenarios.stage import Stage
from xenvirtio.lab.static_build import build_system_text
from xenvirtio.lab.toolstack import MemoryMode, Toolstack

EVIDENCE_FILES = "/run/lab/*.log /run/lab/*/log /var/log/xen/*.log"
SERIAL_LINES_SHOWN = 40
EVIDENCE_TIMEOUT_S = 30.0


@dataclass(slots=True)
class MachineStage:
    """One play of a scenario that boots its own.

    `name` is the scenario's; `start` builds what is missing and starts a machine of a name.
    """

    name: str
    mode: MemoryMode
    start: Callable[[MachineOptions, str], Machine]
    evidence: dict[str, str] = field(default_factory=dict)

    @contextmanager
    def boot(self, options: MachineOptions | None = None, name: str = "own") -> Iterator[Machine]:
        """Boot a machine, wait for its dom0 (if it has one), and stop it at the end of the block.

        dom0 of a static system then has its plan and backends.toml in /etc/xenvirtio, and its `files`.

        Raises:
            ResourceError: it does not start or come up.
        """
        wanted = options or MachineOptions()
        machine = self.start(wanted, name)
        try:
            wait_usable(machine, wanted)
            yield machine
        except Exception:
            self._gather(machine)
            raise
        finally:
            machine.stop(at_once=True)

    def build_system(
        self, text: str, files: Mapping[str, str | bytes] | None = None, options: MachineOptions | None = None
    ) -> BuiltSystem:
        """Run `static build` on a description, with files of its domains by name, for a machine of the options' size.

        The lab's own files are there under the names that `static_build` says.

        Raises:
            ResourceError: the build failed; the message ends with what it said.
        """
        return build_system_text(text, files or {}, options or MachineOptions(), self.name)

    def with_toolstack(self, machine: Machine) -> Stage:
        """dom0's xl and everything ordinary scenarios play with, on a machine whose dom0 has Xen's tools."""
        dom0 = machine.dom0()
        stage = Stage(machine, dom0, Toolstack(dom0), self.mode)
        stage.set_up()
        return stage

    def _gather(self, machine: Machine) -> None:
        """Keep the last lines of all that the machine logged, before it goes."""
        for log, count in ((machine.folder / "qemu.log", LINES_SHOWN), (machine.serial_log, SERIAL_LINES_SHOWN)):
            if log.exists():
                lines = log.read_text(errors="replace").splitlines()[-count:]
                self.evidence[f"{machine.folder.name}/{log.name}"] = "\n".join(lines)
        text = machine.serial_log.read_text(errors="replace") if machine.serial_log.exists() else ""
        for domid in sorted({int(number) for number in re.findall(r"^\(XEN\) .*?DOM(\d+): ", text, re.MULTILINE)}):
            self.evidence[f"domain {domid}"] = "\n".join(machine.domain_lines(domid)[-LINES_SHOWN:])
        command = f"for f in $(ls {EVIDENCE_FILES} 2>/dev/null); do echo \"--- $f\"; tail -n {LINES_SHOWN} $f; done"
        try:
            channel = machine.dom0().channel
            answer = channel.request("run", EVIDENCE_TIMEOUT_S, command=command, timeout_s=EVIDENCE_TIMEOUT_S)
            self.evidence["dom0's logs"] = str(answer["output"])
        except XenvirtioError as error:
            self.evidence["dom0's logs"] = f"(not to be had: {error})"
