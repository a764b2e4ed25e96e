from __future__ import annotations

import gzip
from pathlib import Path

from xenvirtio.lab.artifacts.tree import add_tree
from xenvirtio.static.cpio import CpioWriter


def test_a_folder_goes_into_an_archive_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "usr/bin").mkdir(parents=True)
    program = tmp_path / "usr/bin/tool"
    program.write_bytes(b"abc")
    program.chmod(0o755)
    (tmp_path / "usr/bin/alias").symlink_to("tool")
    (tmp_path / "usr/data").write_bytes(b"")
    by_tree, by_hand = CpioWriter(), CpioWriter()
    add_tree(by_tree, tmp_path)
    by_hand.folder("usr/bin")
    by_hand.link("usr/bin/alias", "tool")
    by_hand.file("usr/bin/tool", b"abc", executable=True)
    by_hand.file("usr/data", b"")
    assert gzip.decompress(by_tree.finish()) == gzip.decompress(by_hand.finish())
