"""The host of a description that names a device tree and no platform: read from that tree."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from xenvirtio.errors import ConfigurationError
from xenvirtio.resources.device_tree import TreeReader, read_host_source
from xenvirtio.static.description_loader import ReadHost
from xenvirtio.static.host import Host
from xenvirtio.static.host_tree import host_of_tree


def host_reader(folders: Sequence[Path], instead: Path | None = None) -> ReadHost:
    """Return what looks for a tree in `folders` and reads it, or the one given `instead`."""

    def read(name: str) -> Host:
        path = instead or next((folder / name for folder in folders if (folder / name).is_file()), None)
        if path is None:
            searched = ", ".join(str(folder) for folder in folders)
            raise ConfigurationError(name, "there is no such host_tree", f"searched in {searched}")
        _, blob = read_host_source(path)
        return host_of_tree(TreeReader(blob, str(path)), str(path))

    return read
