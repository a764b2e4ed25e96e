"""A guest, a XenStore entry or an operator that means harm, or might as well: nobody else notices."""

from __future__ import annotations

import errno
import gc
import os
import threading
import time
from pathlib import Path

import pytest

from tests.sandbox.rig import GuestIo, Rig
from xenvirtio.daemon.configuration import Configuration, DaemonSettings
from xenvirtio.daemon.guest import GuestBackend, GuestIdentity
from xenvirtio.daemon.state_file import DeviceKey
from xenvirtio.daemon.supervisor import Supervisor
from xenvirtio.devices.block.device import BlockDevice
from xenvirtio.errors import HypervisorError, XenStoreError
from xenvirtio.ids import DomId, EventPort
from xenvirtio.resources.memory import open_memory_disk
from xenvirtio.sandbox.guest import GuestDisk
from xenvirtio.sandbox.system import SandboxSystem
from xenvirtio.sandbox.toolstack import DiskConfiguration
from xenvirtio.virtio.driver import MmioDriver
from xenvirtio.virtio.status import Status
from xenvirtio.virtio.transports.lifecycle import TRANSPORT_FEATURES
from xenvirtio.xen.emulated import EmulatedHost, VcpuStopped
from xenvirtio.xen.emulated.client import EmulatedEventChannels


def test_a_guest_that_floods_its_registers_does_not_hold_up_the_others(rig: Rig) -> None:
    """The pump of such a guest always has an access to answer; what the supervisor asks of it is done all the same."""
    image, other = rig.image("a"), rig.image("b")
    guest = rig.system.toolstack.create("flood", [image.disk()], vcpus=8)
    ended = threading.Event()

    def flood(vcpu: int) -> None:
        try:
            while not ended.is_set():
                guest.domain.vcpu(vcpu).mmio_read(guest.devices[0].base, 4)
        except VcpuStopped:
            pass

    threads = [threading.Thread(target=flood, args=(vcpu,), daemon=True) for vcpu in range(8)]
    for thread in threads:
        thread.start()
    rig.destroy(guest)
    ended.set()
    GuestIo(rig.create("two", other.disk()), other).stop()


def test_a_device_that_waits_for_its_image_outlives_the_guests_other_ones(rig: Rig) -> None:
    first, second = rig.image("a"), rig.image("b")
    guest = rig.create("one", first.disk(), second.disk())
    io = GuestIo(guest, second, 1)
    rig.backend.kill()
    away = second.path.rename(second.path.with_suffix(".away"))
    rig.backend.start()
    store = rig.system.store
    store.write(f"{guest.devices[0].backend}/online", "0")
    store.write(f"{guest.devices[0].backend}/state", "5")
    rig.until(lambda: not store.exists(f"{guest.devices[0].backend}/state"))
    assert guest.domain.servers.select(guest.devices[1].base, 4) is not None
    away.rename(second.path)
    rig.backend.hang_up()
    io.progress()
    io.stop()
    second.assert_right()


def test_directories_that_are_no_guests_and_no_devices_are_passed_over(rig: Rig) -> None:
    image, good = rig.image("a"), rig.image("b")
    guest = rig.create("one", image.disk())
    root = "/local/domain/0/backend/virtio_disk"
    entry = {"state": "1", "base": str(0x200_0200), "irq": "34", "params": str(good.path), "transport": "mmio"}
    for name in (f"{guest.domid + 65536}/51712", f"{guest.domid}/{(1 << 32) + 7}", f"{'9' * 200}/1"):
        for key, value in entry.items():
            rig.system.store.write(f"{root}/{name}/{key}", value)
    GuestIo(rig.create("two", good.disk()), good).stop()
    assert guest.domain.servers.select(0x200_0200, 4) is None
    assert rig.system.host.domain(DomId(guest.domid)) is not None
    assert rig.complaints() == []


def test_a_guest_that_starts_and_stops_its_queue_for_ever_does_not_fill_the_log(rig: Rig) -> None:
    image = rig.image()
    guest = rig.create("one", image.disk())
    before = len(rig.backend.log())
    for _ in range(100):
        GuestDisk(guest, guest.devices[0])
    lines = [line for line in rig.backend.log()[before:] if line["level"] != "debug"]
    assert len(lines) < 30


def test_a_batch_of_hours_does_not_hold_up_the_others(rig: Rig) -> None:
    """64 requests that each read 4 GiB into the same few pages: the guest's end is not the others' business."""
    disk_bytes, memory_bytes, pieces = 8 << 30, 16 << 20, 255
    huge = rig.directory / "huge.img"
    huge.touch()
    os.truncate(huge, disk_bytes)
    other = rig.image("other")
    guest = rig.system.toolstack.create("busy", [DiskConfiguration(huge, False)], memory_bytes=4 * memory_bytes)
    disk = GuestDisk(guest, guest.devices[0])
    data, header, status = (disk.dma.allocate(size)[0] for size in (memory_bytes, 4096, 4096))
    for number in range(disk.queue.size):
        table_dma, table = disk.dma.allocate(16 * (pieces + 2))
        writable = [(data, memory_bytes)] * pieces + [(status, 1)]
        disk.queue.offer_indirect(table, table_dma, [(header, 16)], writable, number)
    disk.driver.kick(0)
    time.sleep(0.3)
    remover = threading.Thread(target=rig.system.toolstack.destroy, args=(guest,), daemon=True)
    started = time.monotonic()
    remover.start()
    time.sleep(0.1)
    GuestIo(rig.create("two", other.disk()), other).stop()
    remover.join(10)
    assert time.monotonic() - started < 8


def test_a_queue_that_cannot_be_started_leaves_nothing_and_can_be_started_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = EmulatedHost()
    domain = host.create_domain(memory_bytes=1 << 20)
    hypervisor = host.open_hypervisor()
    backend = GuestBackend(hypervisor, GuestIdentity(domain.domid, "one", "uuid"), tmp_path)
    key = DeviceKey("virtio_disk", 51712, 2, 0x200_0000, 33)
    backend.attach(key, BlockDevice(open_memory_disk(1 << 20)), TRANSPORT_FEATURES, was_running=False)
    backend.start()
    driver = MmioDriver(domain.vcpu(0), key.base)
    areas = [domain.memory.allocate_pages(1) * 4096 for _ in range(3)]

    def boot() -> int:
        driver.negotiate(0)
        driver.setup_queue(0, 16, *areas)
        driver.driver_ok()
        return driver.status & Status.DEVICE_NEEDS_RESET

    def refuse(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    assert boot() == 0
    driver.negotiate(0)
    gc.collect()  # what other tests have left
    descriptors = len(os.listdir("/proc/self/fd"))
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        for _ in range(20):
            assert boot() != 0
        driver.negotiate(0)
        assert len(os.listdir("/proc/self/fd")) <= descriptors
    assert boot() == 0
    backend.destroy()
    host.close()


def test_an_image_without_a_guest_name_is_not_opened(rig: Rig) -> None:
    rig.configure(f'[[device]]\nguest = "*"\ntype = "block"\nresource = {{ file = "{rig.directory}/{{guest}}.img" }}\n')
    rig.backend.hang_up()
    secret = rig.image("secret")
    for name in ("x/../secret", "a\0b", ""):
        rig.create(name, DiskConfiguration(None, False), wait=False)
        message = rig.backend.wait_for_log("not served")["message"]
        assert "cannot stand for {guest}" in message
    GuestIo(rig.create("secret", DiskConfiguration(None, False)), secret).stop()


def test_a_ready_device_is_announced_again_when_the_first_word_was_lost(rig: Rig) -> None:
    image = rig.image()
    guest = rig.create("one", image.disk())
    io = GuestIo(guest, image)
    state = f"{guest.devices[0].backend}/state"
    rig.system.store.write(state, "1")
    rig.until(lambda: rig.system.store.read(state) == "2")
    io.progress()
    io.stop()


def test_a_take_over_that_fails_for_a_moment_costs_the_guest_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, state = tmp_path / "disk.img", tmp_path / "state"
    image.write_bytes(bytes(1 << 20))
    state.mkdir()
    with SandboxSystem(tmp_path) as system:
        guest = system.toolstack.create("one", [DiskConfiguration(image, False)], wait=False)
        configuration = Configuration(DaemonSettings(state_dir=state))
        first = Supervisor(system.host.open_hypervisor(), system.store, configuration)
        first.sync()
        for backend in first.guests:
            backend.release()
        second = Supervisor(system.host.open_hypervisor(), system.store, configuration)

        def no_memory(*_: object) -> EventPort:
            raise HypervisorError("bind_interdomain", errno.ENOMEM)

        with monkeypatch.context() as patch:
            patch.setattr(EmulatedEventChannels, "bind_interdomain", no_memory)
            second.sync()
        assert guest.domain.servers.select(guest.devices[0].base, 4) is not None
        read_optional = system.store.read_optional

        def silent(path: str) -> str | None:
            if path.endswith("/vm"):
                raise XenStoreError("ETIMEDOUT", "READ", path)
            return read_optional(path)

        with monkeypatch.context() as patch:
            patch.setattr(system.store, "read_optional", silent)
            with pytest.raises(XenStoreError):
                second.sync()
        second.sync()
        assert [backend.adopted for backend in second.guests] == [True]
        assert system.host.counters.snapshot()["hypercall.create_ioreq_server"] == 1
        for backend in second.guests:
            backend.release()
