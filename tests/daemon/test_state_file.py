from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from xenvirtio.daemon.state_file import DEVICE_SLOTS, FILE_BYTES, DeviceKey, GuestState
from xenvirtio.errors import ResourceError
from xenvirtio.ids import DomId, ServerId
from xenvirtio.memory.raw import load_u32, store_u32

DOMID = DomId(7)
KEY = DeviceKey("virtio_disk", 51712, 2, 0x200_0000, 33)
OTHER = DeviceKey("virtio", 0, 2, 0x200_0200, 34)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "guest-7.state"


def _filled(path: Path, identity: str = "uuid-1") -> None:
    """A predecessor that was killed: nothing is closed."""
    state = GuestState(path, DOMID, identity)
    state.server = ServerId(3)
    slot = state.claim(KEY)
    store_u32(state.registers_address(slot) + 4, 15)
    state.close()


def test_a_new_file_knows_nothing_and_is_private(path: Path) -> None:
    state = GuestState(path, DOMID, "uuid-1")
    assert (state.inherited, state.server, state.recorded()) == (False, None, [])
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.stat().st_size == FILE_BYTES
    state.close()


def test_a_successor_finds_server_device_and_registers(path: Path) -> None:
    _filled(path)
    state = GuestState(path, DOMID, "uuid-1")
    assert (state.inherited, state.server, state.recorded()) == (True, 3, [KEY])
    slot = state.find(KEY)
    assert slot is not None
    assert load_u32(state.registers_address(slot) + 4) == 15
    assert state.find(OTHER) is None
    state.close()


@pytest.mark.parametrize(("domid", "identity"), [(DOMID, "uuid-2"), (DomId(8), "uuid-1"), (DOMID, "")])
def test_the_state_of_another_guest_is_not_inherited(path: Path, domid: DomId, identity: str) -> None:
    _filled(path)
    state = GuestState(path, domid, identity)
    assert (state.inherited, state.server, state.recorded()) == (False, None, [])
    slot = state.claim(KEY)
    assert load_u32(state.registers_address(slot) + 4) == 0
    state.close()


def test_a_file_without_a_server_is_nothing_to_inherit(path: Path) -> None:
    GuestState(path, DOMID, "uuid-1").close()
    assert not GuestState(path, DOMID, "uuid-1").inherited


GARBAGE = (b"", b"XVSTATE1", b"\xff" * 100, b"\xff" * FILE_BYTES, os.urandom(2 * FILE_BYTES))


@pytest.mark.parametrize("content", GARBAGE, ids=["empty", "magic", "short", "ones", "random"])
def test_garbage_is_no_state(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    state = GuestState(path, DOMID, "uuid-1")
    assert (state.inherited, state.server, state.recorded()) == (False, None, [])
    assert path.stat().st_size == FILE_BYTES
    state.close()


def test_a_truncated_file_reads_as_zeros_where_it_ends(path: Path) -> None:
    _filled(path)
    os.truncate(path, 4096)
    state = GuestState(path, DOMID, "uuid-1")
    slot = state.find(KEY)
    assert slot is not None
    assert load_u32(state.registers_address(slot) + 4) == 0
    state.close()


def test_a_symlink_is_refused_and_its_target_untouched(path: Path, tmp_path: Path) -> None:
    target = tmp_path / "precious"
    target.write_bytes(b"precious")
    path.symlink_to(target)
    with pytest.raises(ResourceError, match=r"guest-7\.state: Too many levels of symbolic links"):
        GuestState(path, DOMID, "uuid-1")
    assert target.read_bytes() == b"precious"


def test_a_directory_is_refused(path: Path) -> None:
    path.mkdir()
    with pytest.raises(ResourceError, match="Is a directory"):
        GuestState(path, DOMID, "uuid-1")


def test_slots_are_claimed_found_released_and_bounded(path: Path) -> None:
    state = GuestState(path, DOMID, "uuid-1")
    keys = [DeviceKey("virtio", number, 2, 0x1000 * number, 33) for number in range(DEVICE_SLOTS)]
    slots = [state.claim(key) for key in keys]
    assert sorted(slots) == list(range(DEVICE_SLOTS))
    assert state.recorded() == keys
    assert len({state.registers_address(slot) for slot in slots}) == DEVICE_SLOTS
    assert all(state.registers_address(slot) % 4096 == 0 for slot in slots)
    with pytest.raises(ResourceError, match="more than 16 devices"):
        state.claim(KEY)
    store_u32(state.registers_address(slots[5]), 77)
    state.release(slots[5])
    assert state.find(keys[5]) is None
    assert state.claim(KEY) == slots[5]
    assert load_u32(state.registers_address(slots[5])) == 0
    state.close()


def test_any_identity_is_kept_apart(path: Path) -> None:
    """Names come from XenStore: any bytes, any length."""
    for identity in ("\udcff\udcfe", "x" * 300, "ü" * 40, "a\0b"):
        _filled(path, identity)
        state = GuestState(path, DOMID, identity)
        assert state.inherited
        state.close()
        assert not GuestState(path, DOMID, "another").inherited


def test_remove_leaves_no_file(path: Path) -> None:
    state = GuestState(path, DOMID, "uuid-1")
    state.remove()
    state.remove()
    assert not path.exists()


def test_a_full_file_system_is_an_error_not_a_signal(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store into a page that tmpfs has no room for would be SIGBUS, so all room is taken at the start."""

    def full(descriptor: int, offset: int, length: int) -> None:
        assert (offset, length) == (0, FILE_BYTES)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(ResourceError, match="No space left"):
        GuestState(path, DOMID, "uuid-1")


def test_devices_of_a_server_that_is_gone_are_forgotten(path: Path) -> None:
    _filled(path)
    state = GuestState(path, DOMID, "uuid-1")
    state.forget_devices()
    assert (state.recorded(), state.find(KEY)) == ([], None)
    state.close()
