"""QEMU's command lines: the emulated machine, and the device tree it would give its kernel."""

from __future__ import annotations

from pathlib import Path

from xenvirtio.lab.agent import PORT_NAME
from xenvirtio.lab.built_system import BuiltSystem
from xenvirtio.lab.options import Images, MachineOptions
from xenvirtio.lab.process import run_logged

DOM0_KERNEL_ADDRESS = 0x49000000
"""Where QEMU's loader puts dom0's kernel: above Xen, below the rest of what Xen allocates early."""


def qemu_command(images: Images, folder: Path, options: MachineOptions) -> list[str]:
    """The command line of the emulated machine; its sockets and logs are in `folder`."""
    # Linux finds the last of QEMU's virtio-mmio devices first, so dom0's root, its /dev/vda, stands at the end.
    disks = {"package": images.package, "guests": images.guests, "dom0": images.root}
    command = [*_hardware(options), "-name", f"xenvirtio-lab-{folder.name}", "-accel", "tcg,thread=multi"]
    command += ["-display", "none", "-monitor", "none", "-no-reboot", "-nodefaults"]
    command += [*_socket_device("qmp", folder / "qmp"), "-mon", "chardev=qmp,mode=control"]
    command += [*_socket_device("serial", folder / "serial", folder / "serial.log"), "-serial", "chardev:serial"]
    command += _socket_device("agent", folder / "agent")
    command += ["-device", "virtio-serial-device", "-device", f"virtserialport,chardev=agent,name={PORT_NAME}"]
    for serial, image in disks.items():
        command += ["-drive", f"if=none,id={serial},file={_escape(image)},format=raw,snapshot=on,cache=unsafe"]
        command += ["-device", f"virtio-blk-device,drive={serial},serial={serial}"]
    command += ["-kernel", str(images.xen)]
    if options.system is not None:
        return command + _system_devices(options.system)
    loader = f"guest-loader,addr={DOM0_KERNEL_ADDRESS:#x},kernel={_escape(images.linux)}"
    loader += f",bootargs={options.dom0_arguments().replace(',', ',,')}"
    return [*command, "-append", options.hypervisor_arguments(), "-device", loader]


def dump_tree(options: MachineOptions, target: Path, log: Path) -> None:
    """Write the device tree of a machine of this size, without /chosen's modules, as a blob.

    Raises:
        ResourceError: QEMU failed.
    """
    command = _hardware(options)
    machine = command.index("-machine") + 1
    command[machine] += f",dumpdtb={_escape(target)}"
    run_logged("dumping the machine's device tree", [*command, "-display", "none", "-nodefaults"], log)


def _hardware(options: MachineOptions) -> list[str]:
    """What the device tree depends on."""
    command = ["qemu-system-aarch64", "-machine", "virt,virtualization=on,gic-version=3", "-cpu", "cortex-a57"]
    return [*command, "-smp", str(options.processors), "-m", str(options.memory_mib)]


def _system_devices(system: BuiltSystem) -> list[str]:
    """`-dtb` replaces the tree that QEMU's guest-loader would edit, so every module is put by a plain loader."""
    devices = ["-dtb", str(system.host_tree)]
    for address, file in system.loads().items():
        devices += ["-device", f"loader,file={_escape(file)},addr={address:#x},force-raw=on"]
    return devices


def _socket_device(name: str, path: Path, log: Path | None = None) -> list[str]:
    device = f"socket,id={name},path={_escape(path)},server=on,wait=off"
    return ["-chardev", device if log is None else f"{device},logfile={_escape(log)}"]


def _escape(path: Path) -> str:
    """A path inside a QEMU option, where a comma is written twice."""
    return str(path).replace(",", ",,")
