from __future__ import annotations

from pathlib import Path

from xenvirtio.lab.options import Images, MachineOptions
from xenvirtio.lab.qemu import qemu_command


def test_every_image_is_a_disk_that_forgets_and_commas_are_escaped(tmp_path: Path) -> None:
    images = Images(*(tmp_path / name for name in ("xen", "Image", "a,b.ext4", "guests.ext4", "package.ext4")))
    command = qemu_command(images, tmp_path, MachineOptions(linux_arguments="quiet,more"))
    drives = [word for word in command if word.startswith("if=none")]
    assert len(drives) == 3
    assert all("snapshot=on" in drive for drive in drives)
    assert f"file={tmp_path}/a,,b.ext4" in drives[-1]
    assert command[-1].endswith("quiet,,more")
