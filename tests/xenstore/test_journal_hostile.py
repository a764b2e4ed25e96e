"""State files with good checksums and no sense, and a link where the next snapshot goes."""

from __future__ import annotations

import zlib
from pathlib import Path

import pytest

from xenvirtio.errors import ConfigurationError
from xenvirtio.xenstore.journal import HEADER, encode_snapshot
from xenvirtio.xenstore.journal_file import JournalFile
from xenvirtio.xenstore.server import XenStoreServer
from xenvirtio.xenstore.snapshot import dump

DEEP = b"[" * 100_000 + b"]" * 100_000


def open_state(path: Path) -> None:
    JournalFile(path, XenStoreServer(lambda: 0.0), clock=lambda: 0.0, warn=lambda line: None).close()


def record(body: bytes) -> bytes:
    return b"%08x %s\n" % (zlib.crc32(body), body)


def snapshot(**changes: object) -> bytes:
    return encode_snapshot({**dump(XenStoreServer(lambda: 0.0)), **changes})


@pytest.mark.parametrize(
    "content",
    [
        HEADER + record(DEEP),
        snapshot(generation=float("inf")),
        snapshot() + record(b'[["put","/a","",[]]]'),
        snapshot() + record(b'[["ring",3,{"consumed":1e999,"partial":"","produced":0,"unsent":"","waiting":false}]]'),
    ],
)
def test_nonsense_is_refused_and_not_a_crash(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "state"
    path.write_bytes(content)
    with pytest.raises(ConfigurationError):
        open_state(path)


def test_a_link_in_the_place_of_the_next_snapshot_costs_no_other_file(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("kept")
    (tmp_path / "state.new").symlink_to(precious)
    with pytest.raises(ConfigurationError):
        open_state(tmp_path / "state")
    assert precious.read_text() == "kept"
