from __future__ import annotations

from xenvirtio.lab.toolstack import Disk, GuestConfig, MemoryMode


def test_a_disk_line_says_all_that_libxl_needs_for_virtio() -> None:
    line = Disk("/srv/lab/a.img", mode=MemoryMode.GRANT).line()
    assert line == (
        "format=raw, vdev=xvda, access=rw, backendtype=standalone, specification=virtio, grant_usage=1, "
        "target=/srv/lab/a.img"
    )


def test_a_configuration_is_written_as_xl_reads_it() -> None:
    text = GuestConfig("domu", memory_mib=64, disks=(Disk("/a"),), extra={"uuid": "x"}).text()
    assert 'name = "domu"\nmemory = 64\n' in text
    assert 'disk = ["format=raw,' in text
    assert 'uuid = "x"\n' in text
    assert "virtio" not in text.replace("specification=virtio", "")
