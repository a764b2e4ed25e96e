from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from xenvirtio.errors import ResourceError
from xenvirtio.lab import boot as boot_module
from xenvirtio.lab.boot import DOM0_FILES, boot, wait_usable
from xenvirtio.lab.built_system import BuiltSystem, Module
from xenvirtio.lab.options import MachineOptions


class _Dom0:
    def __init__(self) -> None:
        self.done: list[str] = []

    def copy_in(self, source: Path, path: str) -> None:
        self.done.append(f"copy {source.name} {path}")

    def run(self, command: str) -> None:
        self.done.append(command)


class _Machine:
    def __init__(self, error: Exception | None = None) -> None:
        self.dom0 = _Dom0()
        self.waited = self.stopped = False
        self._error = error

    def wait_until_up(self) -> _Dom0:
        self.waited = True
        if self._error:
            raise self._error
        return self.dom0

    def stop(self, *, at_once: bool = False) -> None:
        self.stopped = True


def _options(folder: Path, domain: str) -> MachineOptions:
    module = Module(domain, "kernel", folder / "Image", 0x49000000, 1)
    return MachineOptions(system=BuiltSystem(folder, folder / "host.dtb", (module,)))


def test_what_was_built_for_dom0s_root_is_unpacked_over_it(tmp_path: Path) -> None:
    (tmp_path / DOM0_FILES).parent.mkdir()
    (tmp_path / DOM0_FILES).write_bytes(b"archive")
    machine: Any = _Machine()
    wait_usable(machine, _options(tmp_path, "dom0"))
    copied, unpacked = machine.dom0.done
    assert copied.startswith("copy files.cpio.gz /run/lab/")
    assert unpacked == f"cd / && zcat {copied.split()[-1]} | cpio -idmu"


def test_nobody_waits_for_a_dom0_that_is_not_part_of_the_system(tmp_path: Path) -> None:
    machine: Any = _Machine()
    wait_usable(machine, _options(tmp_path, "left"))
    assert not machine.waited


def test_a_machine_that_does_not_come_up_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    machine: Any = _Machine(ResourceError("no dom0"))
    monkeypatch.setattr(boot_module, "start", lambda options, name, progress: machine)
    with pytest.raises(ResourceError, match="no dom0"):
        boot(MachineOptions(), "default", lambda line: None)
    assert machine.stopped
