"""Writes cpio archives of the "newc" kind, what Linux takes as an initramfs, without root and without a cpio program.

Source: Linux Documentation/driver-api/early-userspace/buffer-format.rst.
"""

from __future__ import annotations

import gzip
import posixpath
import stat


class CpioWriter:
    """Collects entries in memory; `finish` gives the gzip-compressed archive.

    All files belong to root. Parent folders are made as needed. Paths are relative, without a leading slash.
    """

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._folders: set[str] = set()
        self._inode = 0

    def folder(self, path: str) -> None:
        """Add a folder (mode 0755), once."""
        if path in ("", ".") or path in self._folders:
            return
        self.folder(posixpath.dirname(path))
        self._folders.add(path)
        self._entry(path, stat.S_IFDIR | 0o755, b"")

    def file(self, path: str, data: bytes, *, executable: bool = False) -> None:
        """Add a regular file."""
        self.folder(posixpath.dirname(path))
        self._entry(path, stat.S_IFREG | (0o755 if executable else 0o644), data)

    def link(self, path: str, target: str) -> None:
        """Add a symbolic link."""
        self.folder(posixpath.dirname(path))
        self._entry(path, stat.S_IFLNK | 0o777, target.encode())

    def character_device(self, path: str, major: int, minor: int) -> None:
        """Add a device node; no privilege is needed, only the archive names it."""
        self.folder(posixpath.dirname(path))
        self._entry(path, stat.S_IFCHR | 0o600, b"", major, minor)

    def finish(self) -> bytes:
        """The whole archive, gzip-compressed; the same entries give the same bytes."""
        self._entry("TRAILER!!!", 0, b"")
        return gzip.compress(b"".join(self._parts), compresslevel=6, mtime=0)

    def _entry(self, path: str, mode: int, data: bytes, major: int = 0, minor: int = 0) -> None:
        self._inode += 1
        name = path.encode() + b"\0"
        fields = (self._inode, mode, 0, 0, 1, 0, len(data), 0, 0, major, minor, len(name), 0)
        header = b"070701" + b"".join(b"%08x" % field for field in fields)
        self._parts += [header, name, bytes(-(len(header) + len(name)) % 4), data, bytes(-len(data) % 4)]

