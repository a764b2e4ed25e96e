"""Static shared memory and static ports on a Linux that a directory of files stands for."""

from __future__ import annotations

import errno
import os
import struct
from pathlib import Path

import pytest

from xenvirtio.errors import ConfigurationError, HypervisorError, ResourceError
from xenvirtio.ids import EventPort
from xenvirtio.xen import libc
from xenvirtio.xen.linux import evtchn, static_port_lock, static_region
from xenvirtio.xen.linux.static_port_lock import StaticPortLock
from xenvirtio.xen.linux.static_region import announced_regions, find_region, map_static_region

ADDRESS, LENGTH = 0x8000000, 0x10000


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A domain with regions `shm` and `other`, no /dev/mem, no UIO."""
    for name, address in (("shm", ADDRESS), ("other", 0x50000000)):
        node = tmp_path / f"tree/xen-shmem@{address:x}"
        node.mkdir(parents=True)
        (node / "xen,id").write_bytes(name.encode() + b"\0")
        (node / "reg").write_bytes(struct.pack(">QQ", address, LENGTH))
    (tmp_path / "tree/xen-shmem@1").mkdir()  # without content
    (tmp_path / "dev").mkdir()
    for name, folder in (("RESERVED_MEMORY", "tree"), ("UIO_CLASS", "uio"), ("DEV", "dev")):
        monkeypatch.setattr(static_region, name, tmp_path / folder)
    return tmp_path


def add_uio(machine: Path, number: int, address: int) -> Path:
    maps = machine / f"uio/uio{number}/maps/map0"
    maps.mkdir(parents=True)
    (maps / "addr").write_text(f"{address:#x}\n")
    (maps / "size").write_text(f"{LENGTH:#x}\n")
    device = machine / f"dev/uio{number}"
    device.write_bytes(bytes(LENGTH))
    return device


def test_regions_are_read_from_the_device_tree(machine: Path) -> None:
    assert [(r.id, r.address, r.length_bytes) for r in announced_regions()] == [
        ("shm", ADDRESS, LENGTH),
        ("other", 0x50000000, LENGTH),
    ]


def test_a_region_that_is_not_there_names_those_that_are(machine: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"'shn': Xen gave.*has shm, other"):
        find_region("shn", ADDRESS, LENGTH)
    with pytest.raises(ConfigurationError, match="none at all"):
        find_region("shm", ADDRESS, LENGTH, machine / "nowhere")


@pytest.mark.parametrize(("address", "length"), [(ADDRESS + 4096, LENGTH), (ADDRESS, 2 * LENGTH)])
def test_a_plan_that_differs_from_the_boot_configuration_is_refused(machine: Path, address: int, length: int) -> None:
    with pytest.raises(ConfigurationError, match=r"in the plan; Xen has 0x10000 at 0x8000000"):
        find_region("shm", address, length)


def test_dev_mem_is_mapped_at_the_regions_address_first(machine: Path) -> None:
    memory = machine / "dev/mem"
    with memory.open("wb") as file:
        file.truncate(ADDRESS + LENGTH)
        file.seek(ADDRESS)
        file.write(b"here")
    add_uio(machine, 0, ADDRESS)
    region = map_static_region("shm", ADDRESS, LENGTH)
    assert (region.is_cached, region.source) == (True, str(memory))
    import ctypes

    assert ctypes.string_at(region.mapping.address, 4) == b"here"
    region.mapping.close()


def test_uio_is_found_by_address_not_by_number(machine: Path) -> None:
    add_uio(machine, 0, 0x50000000)
    device = add_uio(machine, 1, ADDRESS)
    region = map_static_region("shm", ADDRESS, LENGTH)
    assert (region.is_cached, region.source) == (False, str(device))
    region.mapping.close()


def test_no_way_at_all_says_what_each_lacks(machine: Path) -> None:
    with pytest.raises(ResourceError, match=r"CONFIG_DEVMEM; no UIO device at 0x8000000.*generic-uio"):
        map_static_region("shm", ADDRESS, LENGTH)
    with pytest.raises(ConfigurationError, match="auto, mem, uio"):
        map_static_region("shm", ADDRESS, LENGTH, how="dma")


def test_strict_devmem_is_named(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (machine / "dev/mem").write_bytes(b"")

    def refuse(*unused: object) -> int:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(libc, "mmap", refuse)
    with pytest.raises(ResourceError, match="CONFIG_STRICT_DEVMEM"):
        map_static_region("shm", ADDRESS, LENGTH, how="mem")


def test_the_ioctl_is_the_one_after_restrict_domid() -> None:
    """IOCTL_EVTCHN_BIND_STATIC, _IOC(_IOC_NONE, 'E', 7, 4); not in the headers of Linux before 6.6."""
    assert 4 << 16 | ord("E") << 8 | 7 == evtchn.BIND_STATIC


def test_binding_takes_the_lock_first_and_names_the_port_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ioctl answers 0, where those for other channels answer the port."""
    monkeypatch.setattr(static_port_lock, "LOCK_DIRECTORY", tmp_path / "ports")
    calls: list[int] = []

    def ioctl(descriptor: int, request: int, argument: int) -> int:
        calls.append(request)
        with pytest.raises(HypervisorError):
            StaticPortLock(10)
        return 0

    monkeypatch.setattr(libc, "ioctl", ioctl)
    (tmp_path / "evtchn").write_bytes(b"")
    channels = evtchn.LinuxEventChannels(str(tmp_path / "evtchn"))
    assert channels.bind_static(EventPort(10)) == 10
    assert calls == [evtchn.BIND_STATIC]
    with pytest.raises(HypervisorError, match="EISCONN"):
        channels.bind_static(EventPort(10))
    channels.close()
    StaticPortLock(10).release()


def test_a_static_port_has_one_owner_and_says_who(tmp_path: Path) -> None:
    lock = StaticPortLock(10, tmp_path / "ports")
    with pytest.raises(HypervisorError, match=rf"EBUSY.*process {os.getpid()} uses it") as caught:
        StaticPortLock(10, tmp_path / "ports")
    assert caught.value.errno == errno.EBUSY
    StaticPortLock(11, tmp_path / "ports").release()
    lock.release()
    StaticPortLock(10, tmp_path / "ports").release()


def test_no_place_for_the_lock_is_no_reason_to_go_without(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match="lock of static port 10"):
        StaticPortLock(10, tmp_path / "file/ports")
