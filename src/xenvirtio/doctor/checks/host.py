"""This program and the machine it runs on, whatever hypervisor there is."""

from __future__ import annotations

import os
from pathlib import Path

from xenvirtio._engine_choice import describe_engine
from xenvirtio.doctor.finding import Finding, missing, ok, warning
from xenvirtio.doctor.machine import Machine
from xenvirtio.ids import PAGE_SIZE

OLDEST_PYTHON = (3, 11)

SUPPORTED_ARCHITECTURES = ("aarch64", "x86_64")

STATE_BYTES = 1 << 20
"""A guest's state file has 68 KiB."""


def check_python(machine: Machine) -> Finding:
    text = ".".join(map(str, machine.python_version))
    if machine.python_version >= OLDEST_PYTHON:
        return ok("python", text)
    return missing("python", text, "not supported", "Python 3.11 or newer")


def check_architecture(machine: Machine) -> Finding:
    name = machine.architecture
    if name not in SUPPORTED_ARCHITECTURES:
        return missing("architecture", name, "not supported", "arm64 (aarch64) or x86-64")
    if machine.page_bytes != PAGE_SIZE:
        return missing(
            "architecture",
            f"{name} with pages of {machine.page_bytes} bytes",
            "Xen shares pages of 4096 bytes",
            "a kernel with 4 KiB pages (arm64: CONFIG_ARM64_4K_PAGES=y)",
        )
    if machine.is_on_xen and name == "x86_64":
        return warning(
            "architecture",
            name,
            "on x86 xl gives virtio-mmio devices neither an address nor an interrupt",
            "Arm for virtio-mmio guests made by xl",
        )
    return ok("architecture", name)


def check_engine(machine: Machine) -> Finding:
    try:
        text = describe_engine()
    except Exception as error:  # a broken extension module can raise anything
        return missing(
            "engine",
            f"does not load: {type(error).__name__}: {error}",
            "the compiled modules do not fit this Python",
            "install xenvirtio again (pip install --force-reinstall), or set XENVIRTIO_ENGINE=interpreted",
        )
    if text.startswith("compiled"):
        return ok("engine", text)
    if machine.environment.get("XENVIRTIO_ENGINE") == "interpreted":
        return warning("engine", text, "XENVIRTIO_ENGINE=interpreted asks for it", "unset XENVIRTIO_ENGINE")
    return warning(
        "engine",
        text,
        "each request costs some hundred times more processor time",
        "install gcc and python3-dev, then xenvirtio again: the engine is compiled at installation",
    )


def check_state_directory(machine: Machine) -> Finding:
    name = "state directory"
    wanted = machine.state_dir
    existing = machine.path(wanted)
    while not existing.exists() and existing != machine.root:
        existing = existing.parent
    shown = "/" / existing.relative_to(machine.root)
    meaning = "a restarted serve takes guests over by what it finds there"
    remedy = "set [daemon] state_dir in the configuration to a directory on a tmpfs, and doctor's --state-dir to it"
    if not existing.is_dir():
        return missing(name, f"{shown} is not a directory", meaning, remedy)
    if not _is_writable(existing):
        why = "run as root" if os.geteuid() != 0 else remedy
        return missing(name, f"{shown} is not writable", meaning, why)
    free = machine.free_bytes(existing)
    if free < STATE_BYTES:
        return missing(name, f"{shown} has {free >> 10} KiB free", meaning, f"free 1 MiB there, or {remedy}")
    found = f"{wanted} is writable" if existing == machine.path(wanted) else f"{wanted} can be made"
    if machine.is_on_xen and _file_system(machine, shown) not in ("tmpfs", "ramfs", None):
        return warning(
            name,
            f"{found}, but is not on a tmpfs",
            "what is there outlives a reboot of the host, which the guests do not; it is told apart, but the disk is"
            " written for nothing",
            remedy,
        )
    return ok(name, f"{found}, {free >> 20} MiB free")


def _is_writable(directory: Path) -> bool:
    return os.access(directory, os.W_OK | os.X_OK)


def _file_system(machine: Machine, directory: Path) -> str | None:
    """Return the type of file system that holds `directory`, by /proc/mounts."""
    best: tuple[int, str] | None = None
    for line in (machine.text("/proc/mounts") or "").splitlines():
        fields = line.split()
        if len(fields) >= 3 and directory.is_relative_to(fields[1]):
            depth = len(Path(fields[1]).parts)
            if best is None or depth >= best[0]:
                best = depth, fields[2]
    return None if best is None else best[1]
