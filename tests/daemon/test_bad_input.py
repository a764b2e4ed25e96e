"""What an operator gets wrong is one line that names the thing and the way out; nobody else is disturbed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.sandbox.rig import GuestIo, Rig, open_rig
from xenvirtio.sandbox.toolstack import DiskConfiguration


def _missing(path: Path) -> str:
    return f"{path}: does not exist; create it, or correct the path ({path.parent} exists)"


def _directory(path: Path) -> str:
    path.mkdir()
    return f"{path}: is a directory; give the path of a raw image file or of a block device"


def _unreadable(path: Path) -> str:
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    path.write_bytes(bytes(4096))
    path.chmod(0)
    return f"{path}: permission denied for writing; run as a user who may, or change its permissions or read_only"


def _odd(path: Path) -> str:
    path.write_bytes(bytes(1000))
    return f"{path}: has 1000 bytes, not a multiple of 512; give a raw image, or pad it: truncate -s 1024 {path}"


def _empty(path: Path) -> str:
    path.touch()
    return f"{path}: is empty; give it a size: truncate -s 1G {path}"


@pytest.mark.parametrize("spoil", [_missing, _directory, _unreadable, _odd, _empty])
def test_a_bad_image_is_one_warning(rig: Rig, spoil: Callable[[Path], str]) -> None:
    good = rig.image("good")
    io = GuestIo(rig.create("good", good.disk()), good)
    path = rig.directory / "bad.img"
    expected = f"not served: {spoil(path)}"
    bad = rig.create("bad", DiskConfiguration(path, False), wait=False)
    assert rig.backend.wait_for_log("not served")["message"] == expected
    for number in range(5):  # events that make it look again
        rig.system.store.write(f"/local/domain/0/backend/virtio_disk/{bad.domid}/junk", str(number))
    io.progress()
    late = rig.image("late")
    GuestIo(rig.create("late", late.disk()), late).stop()
    assert rig.complaints() == [expected]
    assert rig.system.host.counters.snapshot()["hypercall.create_ioreq_server"] == 2, "nothing is set up for it"
    assert rig.system.store.read(f"{bad.devices[0].backend}/state") == "1"
    rig.system.toolstack.destroy(bad)
    io.progress()
    io.stop()


def test_an_image_that_appears_is_served_after_sighup(rig: Rig) -> None:
    guest = rig.create("one", DiskConfiguration(rig.directory / "late.img", False), wait=False)
    rig.backend.wait_for_log("not served")
    image = rig.image("late")
    rig.backend.hang_up()
    rig.until(lambda: rig.system.store.read(f"{guest.devices[0].backend}/state") == "2")
    GuestIo(guest, image).stop()


def test_an_image_in_use_is_refused_to_the_second_guest(rig: Rig) -> None:
    image = rig.image()
    io = GuestIo(rig.create("one", image.disk()), image)
    rig.create("two", image.disk(), wait=False)
    warning = rig.backend.wait_for_log("not served")["message"]
    assert warning.startswith(f"not served: {image.path}: is locked by another disk user; stop that one")
    io.progress()
    io.stop()


ENTRIES = {
    "no transport": (
        {"transport": "", "base": "0", "irq": "0"},
        "transport is ''; write transport=mmio in the guest's virtio=[...] entry",
    ),
    "base 0": (
        {"base": "0", "irq": "0"},
        "no MMIO window was assigned (base 0x0, irq 0); "
        "on Arm write transport=mmio in the guest's virtio=[...] entry; on x86 xl assigns none",
    ),
    "not a number": ({"base": "here"}, "base is 'here', not a number"),
    "negative": ({"base": "-512"}, "base is '-512', out of range"),
    "not aligned": ({"base": "0x2000100"}, "base 0x2000100 is not a multiple of 0x200"),
    "no such interrupt": ({"irq": "12"}, "irq 12 is not a shared interrupt; allowed: 32 to 1019"),
    "pci": ({"transport": "pci"}, "transport is 'pci'; write transport=mmio in the guest's virtio=[...] entry"),
}


@pytest.mark.parametrize("name", ENTRIES)
def test_a_bad_entry_is_one_warning(rig: Rig, name: str) -> None:
    keys, problem = ENTRIES[name]
    image, good = rig.image("bad"), rig.image("good")
    bad = rig.create("bad", DiskConfiguration(image.path, False, keys=keys), wait=False)
    assert rig.backend.wait_for_log("not served")["message"] == f"not served: {bad.devices[0].backend}: {problem}"
    io = GuestIo(rig.create("good", good.disk()), good)
    io.stop()
    assert len(rig.complaints()) == 1


def test_one_bad_disk_does_not_take_the_guests_other_one_with_it(rig: Rig) -> None:
    good = rig.image()
    guest = rig.create("one", good.disk(), DiskConfiguration(rig.directory / "missing.img", False), wait=False)
    rig.until(lambda: rig.system.store.read(f"{guest.devices[0].backend}/state") == "2")
    GuestIo(guest, good).stop()
    assert len(rig.complaints()) == 1


def test_two_devices_at_one_base_leak_nothing(rig: Rig) -> None:
    first, second = rig.image("a"), rig.image("b")
    guest = rig.create("one", first.disk(), second.disk(base=str(0x200_0000)), wait=False)
    warning = rig.backend.wait_for_log("not served")["message"]
    assert "EEXIST" in warning
    io = GuestIo(guest, first)
    before = rig.descriptors()
    for number in range(5):
        rig.system.store.write(f"{guest.devices[1].backend}/junk", str(number))
    io.progress()
    io.stop()
    rig.until(lambda: rig.descriptors() <= before)
    assert len(rig.complaints()) == 1


def test_a_virtio_entry_without_configuration_says_what_to_add(rig: Rig) -> None:
    guest = rig.create("one", DiskConfiguration(None, True), wait=False)
    assert rig.backend.wait_for_log("not served")["message"] == (
        f"not served: {guest.devices[0].backend}: no [[device]] entry for block in guest one ({guest.domid}); "
        "add one to the configuration and send SIGHUP"
    )
    image = rig.image("one")
    rig.configure(f'[[device]]\nguest = "one"\ntype = "block"\nresource = {{ file = "{image.path}" }}\n')
    rig.backend.hang_up()
    rig.until(lambda: rig.system.store.read(f"{guest.devices[0].backend}/state") == "2")
    GuestIo(guest, image).stop()


def test_an_unknown_device_type_names_the_known_ones(rig: Rig) -> None:
    guest = rig.create("one", DiskConfiguration(None, True, keys={"type": "virtio,device99"}), wait=False)
    message = rig.backend.wait_for_log("not served")["message"]
    assert message.startswith(f"not served: {guest.devices[0].backend}: unknown device type 'virtio,device99'; known: ")
    assert "virtio,device2 (block)" in message


def test_a_bad_configuration_at_sighup_changes_nothing(rig: Rig) -> None:
    image = rig.image()
    io = GuestIo(rig.create("one", image.disk()), image)
    rig.configure("serve_discs = true\n")
    rig.backend.hang_up()
    line = rig.backend.wait_for_log("configuration not changed")
    assert line["level"] == "error"
    assert line["message"] == (
        f"configuration not changed: {rig.toml}: daemon: unknown key 'serve_discs'; "
        "allowed: state_dir, serve_disks, indirect_with_grants"
    )
    io.progress()
    rig.toml.write_text('[daemon]\nstate_dir = "/nonexistent/elsewhere"\n')
    rig.backend.hang_up()
    rig.backend.wait_for_log("state_dir stays")
    other = rig.image("other")
    GuestIo(rig.create("two", other.disk()), other).stop()
    io.stop()


def test_a_state_file_that_cannot_be_used_is_one_warning(rig: Rig) -> None:
    image, other = rig.image("a"), rig.image("b")
    first = rig.create("one", image.disk())
    trap = rig.state / f"guest-{first.domid + 1}.state"
    trap.symlink_to("/etc/passwd")
    second = rig.create("two", other.disk(), wait=False)
    message = rig.backend.wait_for_log("not served")["message"]
    assert message == f"not served: two ({second.domid}): {trap}: Too many levels of symbolic links"
    GuestIo(first, image).stop()


def test_strange_names_and_values_do_not_stop_the_backend(rig: Rig) -> None:
    """XenStore values are bytes; a name may be anything."""
    image, good = rig.image("a"), rig.image("b")
    guest = rig.create("one", DiskConfiguration(None, True), wait=False)
    store = rig.system.store
    store.write(f"/local/domain/{guest.domid}/name", b"\xff\xfe\0" + b"x" * 300)
    store.write(f"/local/domain/{guest.domid}/vm", b"/vm/" + b"\xff" * 300)
    for value in (b"\xc2\xb2", b"", b"-1", b"9" * 4000, b"1"):
        store.write(f"{guest.devices[0].backend}/state", value)
    strange = rig.create("strange", image.disk(params="/tmp/\0/x"), wait=False)
    store.write(f"/local/domain/{strange.domid}/vm", b"/vm/" + b"\xff" * 300)
    last = rig.create("good", good.disk())
    store.write(f"/local/domain/{last.domid}/vm", b"/vm/" + b"\xff" * 300)
    GuestIo(last, good).stop()


def test_a_wrong_configuration_stops_the_start(tmp_path: Path) -> None:
    with open_rig(tmp_path, 'serve_disks = "yes"\n', start=False) as rig:
        with pytest.raises(Exception, match="serve_disks: found 'yes'; allowed: true or false"):
            rig.backend.start()
        assert rig.backend.terminate() == 2
