from __future__ import annotations

import gzip

from xenvirtio.static.cpio import CpioWriter


def test_an_archive_holds_folders_files_links_and_devices_in_order() -> None:
    writer = CpioWriter()
    writer.file("bin/tool", b"abc", executable=True)
    writer.link("bin/sh", "tool")
    writer.character_device("dev/console", 5, 1)
    data = gzip.decompress(writer.finish())
    entries = []
    at = 0
    while True:
        assert data[at : at + 6] == b"070701"
        fields = [int(data[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        name = data[at + 110 : at + 110 + fields[11] - 1].decode()
        body = (at + 110 + fields[11] + 3) & ~3
        if name == "TRAILER!!!":
            break
        entries.append((name, oct(fields[1]), data[body : body + fields[6]], fields[9:11]))
        at = (body + fields[6] + 3) & ~3
    assert entries == [
        ("bin", "0o40755", b"", [0, 0]),
        ("bin/tool", "0o100755", b"abc", [0, 0]),
        ("bin/sh", "0o120777", b"tool", [0, 0]),
        ("dev", "0o40755", b"", [0, 0]),
        ("dev/console", "0o20600", b"", [5, 1]),
    ]
