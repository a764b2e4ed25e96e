from __future__ import annotations

import os

from xenvirtio.resources.memory import open_memory_disk


def test_a_memory_disk_is_a_disk_of_zeros() -> None:
    disk = open_memory_disk(1 << 20, name="demo")
    assert (disk.size_bytes, disk.direct_alignment, disk.fd) == (1 << 20, 0, disk.buffered_fd)
    assert os.pread(disk.fd, 4096, 0) == bytes(4096)
    os.ftruncate(disk.fd, 2 << 20)
    assert disk.refresh_size() == 2 << 20
    disk.close()
