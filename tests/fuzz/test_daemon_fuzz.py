"""Whatever lies in a state file, a XenStore entry or a configuration: a value or the documented error."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from xenvirtio.daemon.configuration import load_configuration, parse_configuration
from xenvirtio.daemon.entries import EntryPath, parse_entry
from xenvirtio.daemon.state_file import DEVICE_SLOTS, DeviceKey, GuestState
from xenvirtio.errors import ConfigurationError, ResourceError
from xenvirtio.ids import DomId

identities = st.binary(max_size=80).map(lambda raw: raw.decode("utf-8", "surrogateescape"))
headers = st.binary(max_size=900)
names = st.sampled_from(["base", "irq", "type", "transport", "params", "mode"])
numbers = st.one_of(st.integers().map(str), st.integers(0, 1 << 50).map(hex), st.integers(32, 1019).map(str))
values = st.one_of(
    numbers,
    st.binary(max_size=40).map(lambda raw: raw.decode("utf-8", "surrogateescape")),
    st.sampled_from(["mmio", "virtio,device2", "virtio,device", "0x2000000", "", "0x", "1_0", "²", "0b1", "٣"]),
)
keys = st.sampled_from(
    [
        *("daemon", "state_dir", "serve_disks", "indirect_with_grants"),
        *("device", "guest", "type", "resource", "devid", "serial", "queues", "queue_size"),
        *("file", "read_only", "direct", "something else"),
    ]
)
scalars = st.one_of(
    st.booleans(), st.integers(), st.floats(), st.text(max_size=30), st.sampled_from(["block", "/d.img", "g", 1, 256])
)
documents = st.dictionaries(
    keys, st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner), max_leaves=20)
)


def check_error(error: ConfigurationError, source: str) -> None:
    assert "\n" not in str(error)
    assert str(error).startswith(f"{source}: ")


@given(headers, st.booleans(), identities)
def test_any_bytes_as_a_state_file_can_be_used_afterwards(content: bytes, with_magic: bool, identity: str) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "guest-7.state"
        path.write_bytes((b"XVSTATE1" + b"\7\0\0\0" if with_magic else b"") + content)
        state = GuestState(path, DomId(7), identity)
        recorded = state.recorded()
        assert len(recorded) <= DEVICE_SLOTS
        if not state.inherited:
            assert state.server is None or with_magic
        for key in recorded:
            state.find(key)
        try:
            key = DeviceKey("virtio", 3, 2, 0x1000, 33)
            slot = state.claim(key)
            assert state.find(key) is not None
            state.release(slot)
        except ResourceError:
            assert len(recorded) == DEVICE_SLOTS
        state.close()


@given(st.dictionaries(names, values), st.sampled_from(["virtio", "virtio_disk"]))
def test_any_entry_is_parsed_or_refused_in_one_line(entry: dict[str, str], kind: str) -> None:
    path = EntryPath("/local/domain/0/backend", kind, DomId(3), 0)
    try:
        parsed = parse_entry(path, entry)
    except ConfigurationError as error:
        check_error(error, str(path))
    else:
        assert 0 < parsed.base < 1 << 48
        assert parsed.base % 0x200 == 0
        assert 32 <= parsed.irq <= 1019
        assert "\0" not in (parsed.params or "")


@given(documents)
def test_any_document_is_a_configuration_or_refused_in_one_line(document: dict[str, Any]) -> None:
    try:
        configuration = parse_configuration(document, "backends.toml")
    except ConfigurationError as error:
        check_error(error, "backends.toml")
    else:
        assert configuration.daemon.state_dir.is_absolute()
        for device in configuration.devices:
            assert device.resource.path_for("guest").is_absolute()


@given(st.one_of(st.binary(max_size=200), st.text(max_size=100).map(str.encode)))
def test_any_file_is_read_or_refused_in_one_line(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "backends.toml"
        path.write_bytes(content)
        try:
            load_configuration(path)
        except ConfigurationError as error:
            check_error(error, str(path))
