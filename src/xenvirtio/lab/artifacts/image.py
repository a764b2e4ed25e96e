"""File-system images from folders, made without mounting anything and without root."""

from __future__ import annotations

from pathlib import Path

from xenvirtio.lab.process import run_logged


def make_ext4(image: Path, folder: Path, *, label: str, size_mib: int, log: Path) -> None:
    """A sparse ext4 image of `size_mib` MiB that holds what `folder` holds, owned by root.

    Without a journal: the lab never keeps what was written to these images.
    """
    image.unlink(missing_ok=True)
    command: list[str | Path] = ["/sbin/mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-L", label]
    command += ["-E", "lazy_itable_init=1,root_owner=0:0", "-d", folder, image, f"{size_mib}M"]
    run_logged(f"making the {label} image", command, log)
