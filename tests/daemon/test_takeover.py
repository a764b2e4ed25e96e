"""A backend that is killed or asked to end is replaced, and no guest notices."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

from tests.sandbox.rig import GuestIo, Rig, open_rig
from xenvirtio.sandbox.guest import GuestDisk


def test_sigterm_leaves_the_guests_to_the_successor(rig: Rig, grants: bool) -> None:
    image = rig.image()
    guest = rig.create("one", image.disk(grants=grants))
    io = GuestIo(guest, image)
    for _ in range(3):
        assert rig.backend.terminate() == 0
        rig.backend.start()
        io.progress()
    io.stop()
    rig.destroy(guest)
    image.assert_right()
    assert rig.complaints() == []


def test_kill_9_ten_times_under_verified_io_in_both_memory_modes(rig: Rig) -> None:
    """In one run: both guests are served by the same processes."""
    images = [rig.image("foreign", 256), rig.image("grants", 256)]
    guests = [rig.create(image.path.stem, image.disk(grants=bool(n))) for n, image in enumerate(images)]
    running = [GuestIo(guest, image) for guest, image in zip(guests, images, strict=True)]
    for _ in range(10):
        rig.backend.kill()
        rig.backend.start()
        for io in running:
            io.progress()
    assert rig.system.host.counters.snapshot()["hypercall.create_ioreq_server"] == 2, "the same servers all the time"
    for io, guest, image in zip(running, guests, images, strict=True):
        io.stop()
        rig.destroy(guest)
        image.assert_right()
    assert rig.complaints() == []


def test_an_access_that_nobody_answered_is_answered_by_the_successor(rig: Rig) -> None:
    image = rig.image()
    guest = rig.create("one", image.disk())
    disk = GuestDisk(guest, guest.devices[0])
    rig.backend.kill()
    answers: list[int] = []
    reader = threading.Thread(target=lambda: answers.append(disk.driver.probe()), daemon=True)
    reader.start()
    reader.join(0.1)
    assert reader.is_alive(), "the vCPU must wait"
    rig.backend.start()
    reader.join(10)
    assert answers == [2]


def test_a_device_removed_while_no_backend_ran_is_taken_down_by_the_next(rig: Rig) -> None:
    first, second = rig.image("a"), rig.image("b")
    guest = rig.create("one", first.disk(), second.disk())
    io = GuestIo(guest, first)
    rig.backend.kill()
    rig.system.store.rm(guest.devices[1].backend)
    rig.backend.start()
    io.progress()
    assert guest.domain.servers.select(guest.devices[1].base, 4) is None
    assert guest.domain.servers.select(guest.devices[0].base, 4) is not None
    io.stop()


def test_a_disk_that_cannot_be_opened_after_a_restart_waits_for_its_image(rig: Rig) -> None:
    """Without its range the guest would crash at the next access."""
    first, second = rig.image("a"), rig.image("b")
    guest = rig.create("one", first.disk(), second.disk())
    running = [GuestIo(guest, first, 0), GuestIo(guest, second, 1)]
    rig.backend.kill()
    away = second.path.rename(second.path.with_suffix(".away"))
    rig.backend.start()
    running[0].progress()
    away.rename(second.path)
    rig.backend.hang_up()
    for io in running:
        io.progress()
        io.stop()
    assert guest.domain.crash_reason is None
    first.assert_right()
    second.assert_right()


def test_a_lost_state_directory_makes_the_driver_reset(rig: Rig) -> None:
    image = rig.image()
    guest = rig.create("one", image.disk())
    disk = GuestDisk(guest, guest.devices[0])
    rig.backend.kill()
    for path in rig.state_files(guest):
        path.unlink()
    rig.backend.start()
    assert disk.driver.status & 64
    again = GuestDisk(guest, guest.devices[0])
    assert again.block.read(0, 4096).data == image.path.read_bytes()[:4096]


def test_two_backends_on_one_state_directory_are_refused(rig: Rig) -> None:
    command = [sys.executable, "-m", "xenvirtio", "serve", "--emulated", str(rig.directory), str(rig.toml)]
    second = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert second.returncode == 2
    assert second.stderr == f"xenvirtio: {rig.state}: another xenvirtio serve is running here\n"


def test_a_backend_that_starts_before_any_guest_and_after_them_are_the_same(tmp_path: Path) -> None:
    with open_rig(tmp_path, start=False) as rig:
        image = rig.image()
        guest = rig.create("one", image.disk(), wait=False)
        rig.backend.start()
        rig.until(lambda: rig.system.store.read(f"{guest.devices[0].backend}/state") == "2")
        GuestIo(guest, image).stop()
