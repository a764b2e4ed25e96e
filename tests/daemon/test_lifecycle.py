"""Guests come, go, reboot and crash under a running backend; nothing of them stays."""

from __future__ import annotations

from pathlib import Path

from tests.sandbox.rig import GuestIo, Rig, open_rig
from xenvirtio.daemon.entries import WINDOW_BYTES
from xenvirtio.sandbox.guest import GuestDisk
from xenvirtio.sandbox.toolstack import DiskConfiguration
from xenvirtio.sandbox.workload import SECTORS
from xenvirtio.xenstore.client import Operations


def test_a_guest_reads_and_writes_its_image(rig: Rig, grants: bool) -> None:
    image = rig.image()
    guest = rig.create("one", image.disk(grants=grants))
    io = GuestIo(guest, image)
    io.progress()
    io.stop()
    rig.destroy(guest)
    image.assert_right()
    assert rig.complaints() == []


def test_a_virtio_entry_takes_its_file_from_the_configuration(tmp_path: Path) -> None:
    toml = f"""
[[device]]
guest = "web-*"
type = "block"
resource = {{ file = "{tmp_path}/{{guest}}.img" }}
serial = "fourty-two"
"""
    with open_rig(tmp_path, toml) as rig:
        rig.image("web-7")
        guest = rig.create("web-7", DiskConfiguration(None, True))
        assert GuestDisk(guest, guest.devices[0]).block.get_id().data.rstrip(b"\0") == b"fourty-two"


def test_removal_is_answered_with_closed_and_the_leaf_goes(rig: Rig) -> None:
    image = rig.image()
    guest = rig.create("one", image.disk())
    store, backend = rig.system.store, guest.devices[0].backend
    store.write(f"{backend}/state", "5")
    rig.until(lambda: not store.exists(backend))
    assert store.exists("/local/domain/0/backend")
    rig.until(lambda: not rig.state_files(guest))
    assert guest.domain.servers.select(guest.devices[0].base, 4) is None


def test_offline_is_a_removal_too(rig: Rig) -> None:
    guest = rig.create("one", rig.image().disk())
    rig.system.store.write(f"{guest.devices[0].backend}/online", "0")
    rig.until(lambda: not rig.system.store.exists(guest.devices[0].backend))


def test_a_vanished_directory_is_a_removal_too(rig: Rig) -> None:
    guest = rig.create("one", rig.image().disk())
    rig.system.store.rm(guest.devices[0].backend)
    rig.until(lambda: not rig.state_files(guest))
    assert not rig.system.store.exists(guest.devices[0].backend), "it must not be written back"


def test_a_reboot_is_a_new_domain(rig: Rig, grants: bool) -> None:
    image = rig.image()
    first = rig.create("one", image.disk(grants=grants))
    GuestIo(first, image).stop()
    rig.destroy(first)
    second = rig.create("one", image.disk(grants=grants))
    assert second.domid != first.domid
    io = GuestIo(second, image)
    io.stop()
    rig.destroy(second)
    image.assert_right()


def test_a_guest_destroyed_in_the_middle_of_io_leaves_no_zombie_and_no_torn_block(rig: Rig, grants: bool) -> None:
    image, other = rig.image("victim"), rig.image("other")
    victim, bystander = rig.create("victim", image.disk(grants=grants)), rig.create("other", other.disk(grants=grants))
    io, other_io = GuestIo(victim, image), GuestIo(bystander, other)
    io.progress()
    rig.destroy(victim)
    io.join()
    assert io.died
    image.assert_right()
    other_io.progress()
    other_io.stop()
    other.assert_right()
    assert rig.complaints() == []


def test_a_crashed_guest_is_served_until_it_is_destroyed(rig: Rig) -> None:
    image = rig.image()
    guest = rig.create("one", image.disk())
    io = GuestIo(guest, image)
    guest.domain.crash("by the test")
    io.join()
    assert io.died
    rig.destroy(guest)
    image.assert_right()


def test_twenty_lives_leave_nothing(rig: Rig) -> None:
    image = rig.image()
    before = 0
    for number in range(21):
        guest = rig.create("cycle", image.disk(grants=bool(number % 2)))
        disk = GuestDisk(guest, guest.devices[0])
        assert disk.block.write(0, image.path.read_bytes()[:4096]).status == 0
        rig.destroy(guest)
        rig.until(lambda: rig.threads() <= 2)
        if number == 0:
            before = rig.descriptors()
    rig.until(lambda: rig.descriptors() == before)
    assert rig.mappings() <= 1, "one dead guest's memory at most, that of the last grant copy"
    assert [domain.domid for domain in rig.system.host.domains()] == [0]
    calls = rig.system.host.counters.snapshot()
    assert calls["hypercall.create_ioreq_server"] == calls["hypercall.destroy_ioreq_server"] == 21


def test_a_device_added_later_joins_the_running_guest(rig: Rig) -> None:
    image, late = rig.image("first"), rig.image("late")
    guest = rig.create("one", image.disk())
    io = GuestIo(guest, image)
    base = guest.devices[0].base + WINDOW_BYTES
    backend = f"/local/domain/0/backend/virtio_disk/{guest.domid}/51728"
    keys = {"base": str(base), "irq": "34", "params": str(late.path), "online": "1", "state": "1", "mode": "w"}

    def add(transaction: Operations) -> None:
        for key, value in keys.items():
            transaction.write(f"{backend}/{key}", value)

    rig.system.store.transact(add)
    rig.until(lambda: rig.system.store.read(f"{backend}/state") == "2")
    io.progress()
    assert guest.domain.vcpu(0).mmio_read(base, 4) == 0x74726976
    rig.system.store.write(f"{backend}/state", "5")
    rig.until(lambda: not rig.system.store.exists(backend))
    io.progress()
    io.stop()
    assert rig.complaints() == []


def test_capacity_growth_reaches_the_driver(rig: Rig) -> None:
    image = rig.image()
    guest = rig.create("one", image.disk())
    disk = GuestDisk(guest, guest.devices[0])
    before = disk.capacity_sectors
    with image.path.open("r+b") as file:
        file.truncate((image.model.blocks + 8) * 4096)
    rig.backend.hang_up()
    rig.backend.wait_for_log("configuration read again")
    assert int.from_bytes(disk.driver.read_config(0, 8), "little") == before + 8 * SECTORS
    rig.until(lambda: bool(disk.driver.interrupt_status() & 2))  # set after the status, by another thread
    assert disk.block.read(before, 4096).data == bytes(4096)


def test_a_guest_whose_ring_is_nonsense_is_asked_to_reset_and_others_go_on(rig: Rig, grants: bool) -> None:
    good_image, bad_image = rig.image("good"), rig.image("bad")
    good, bad = rig.create("good", good_image.disk(grants=grants)), rig.create("bad", bad_image.disk(grants=grants))
    io = GuestIo(good, good_image)
    disk = GuestDisk(bad, bad.devices[0], indirect=False)
    disk.queue.offer([(0xDEAD_0000_0000, 16)], [(0x7, 1)])  # memory the guest does not have, no status it could get
    disk.queue.offer([], [(0, 1)] * 3)
    disk.driver.kick(0)
    rig.until(lambda: bool(disk.driver.status & 64))
    rig.until(lambda: bool(disk.driver.interrupt_status() & 2))  # set after the status, by another thread
    io.progress()
    io.stop()
    again = GuestDisk(bad, bad.devices[0])  # the driver does as asked
    assert again.block.read(0, 4096).data == bad_image.path.read_bytes()[:4096]
    assert [line for line in rig.complaints() if "needs a reset" not in line] == []


def test_rings_that_are_not_in_memory_are_refused_alone(rig: Rig) -> None:
    image = rig.image()
    guest = rig.create("one", image.disk())
    disk = GuestDisk(guest, guest.devices[0])
    driver = disk.driver
    for nowhere in (0x9_0000_0000_0000, 1 << 63 | 0x7FFF_F000, 0):
        driver.negotiate(disk.features)
        driver.setup_queue(0, 16, nowhere, nowhere, nowhere)
        driver.driver_ok()
        assert driver.status & 64
    assert GuestDisk(guest, guest.devices[0]).block.read(0, 512).status == 0


def test_xenstore_restart_is_a_normal_event(rig: Rig) -> None:
    image = rig.image()
    guest = rig.create("one", image.disk())
    io = GuestIo(guest, image)
    rig.system.restart_store(away_s=0.3)
    io.progress()
    late = rig.image("late")
    second = rig.create("two", late.disk())
    io2 = GuestIo(second, late)
    io2.stop()
    io.progress()
    io.stop()
    rig.destroy(guest)
    rig.destroy(second)
    image.assert_right()


def test_a_read_only_disk_refuses_writes(rig: Rig) -> None:
    image = rig.image()
    guest = rig.create("one", image.disk(read_only=True))
    disk = GuestDisk(guest, guest.devices[0])
    assert disk.features & 1 << 5
    assert disk.block.write(0, bytes(512)).status == 1
    io = GuestIo(guest, image, read_only=True)
    io.stop()
    image.assert_right()


def test_a_driver_that_resets_in_the_middle_of_io_starts_over(rig: Rig, grants: bool) -> None:
    image = rig.image()
    guest = rig.create("one", image.disk(grants=grants))
    for _ in range(5):
        disk = GuestDisk(guest, guest.devices[0])
        for block in range(8):
            disk.block.submit_read(block * SECTORS, 4096)
        disk.block.kick()
        disk.driver.reset()
        assert disk.driver.status == 0
    assert rig.complaints() == []
