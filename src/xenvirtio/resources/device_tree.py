"""Device trees on this machine: compiled and taken apart by dtc, read by libfdt.

dtc is a program (Debian package device-tree-compiler), libfdt its library for Python (PyPI pylibfdt).
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from xenvirtio.errors import ConfigurationError, ResourceError

TREE_BYTES_MAX = 2 << 20
"""What Linux and Xen take (MAX_FDT_SIZE)."""
_BLOB_MAGIC = b"\xd0\x0d\xfe\xed"
_DTC_TIMEOUT_S = 60.0
_NO_DTC = "install the Debian package device-tree-compiler"


def compile_tree(source: str, name: str) -> bytes:
    """Return the blob of a tree's source; `name` is what errors call it.

    Raises:
        ConfigurationError: there is no dtc. ResourceError: dtc refuses the source.
    """
    blob = _dtc(["-q", "-I", "dts", "-O", "dtb"], source.encode(), name)
    if len(blob) > TREE_BYTES_MAX:
        raise ResourceError(f"{name}: the tree has {len(blob)} bytes, Xen takes {TREE_BYTES_MAX}")
    return blob


def read_host_source(path: Path) -> tuple[str, bytes]:
    """Read a host's tree, source or blob; return it as plain source (all includes resolved) and as a blob of that.

    Raises:
        ConfigurationError: unreadable, not a tree, or there is no dtc.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigurationError(str(path), error.strerror or str(error), "give the host's .dtb or .dts") from error
    try:
        if not data.startswith(_BLOB_MAGIC):
            data = _dtc(["-q", "-I", "dts", "-O", "dtb", "-i", str(path.parent)], data, str(path))
        source = _dtc(["-q", "-I", "dtb", "-O", "dts"], data, str(path)).decode()
        # libfdt trusts what is inside a blob, and gets one that dtc made
        return source, compile_tree(source, str(path))
    except (ResourceError, UnicodeDecodeError) as error:
        raise ConfigurationError(str(path), f"not a device tree: {error}", "give the host's .dtb or .dts") from error


def _dtc(arguments: list[str], data: bytes, name: str) -> bytes:
    try:
        done = subprocess.run(
            ["dtc", *arguments, "-o", "-", "-"], input=data, capture_output=True, timeout=_DTC_TIMEOUT_S, check=False
        )
    except FileNotFoundError as error:
        raise ConfigurationError(name, "there is no dtc on this machine", _NO_DTC) from error
    except subprocess.TimeoutExpired as error:
        raise ResourceError(f"{name}: dtc did not end within {_DTC_TIMEOUT_S:.0f} s") from error
    if done.returncode != 0:
        said = " ".join(done.stderr.decode(errors="replace").split())
        raise ResourceError(f"{name}: dtc: {said[:500]}")
    return done.stdout


class TreeReader:
    """A blob that dtc made, read by paths. Properties that are not there are None."""

    def __init__(self, blob: bytes, name: str = "tree") -> None:
        """Raises ConfigurationError: not a blob, or there is no libfdt."""
        try:
            import libfdt
        except ImportError as error:
            raise ConfigurationError(name, "Python lacks libfdt", "pip install 'xenvirtio[static]'") from error
        self._libfdt = libfdt
        try:
            self._tree: Any = libfdt.Fdt(blob)
        except libfdt.FdtException as error:
            raise ConfigurationError(name, f"not a device tree: {error}") from error

    def children(self, path: str) -> list[str]:
        """Names of a node's children, in their order. Raises KeyError: no such node."""
        return [self._tree.get_name(node) for node in self._nodes(path)]

    def properties(self, path: str) -> list[str]:
        """Names of a node's properties. Raises KeyError: no such node."""
        found = []
        offset = self._tree.first_property_offset(self._offset(path), self._libfdt.QUIET_NOTFOUND)
        while offset >= 0:
            found.append(self._tree.get_property_by_offset(offset).name)
            offset = self._tree.next_property_offset(offset, self._libfdt.QUIET_NOTFOUND)
        return found

    def value(self, path: str, name: str) -> bytes | None:
        """A property's bytes. Raises KeyError: no such node."""
        found = self._tree.getprop(self._offset(path), name, self._libfdt.QUIET_NOTFOUND)
        return None if isinstance(found, int) else bytes(found)

    def cells(self, path: str, name: str) -> tuple[int, ...] | None:
        """A property's 32-bit numbers."""
        value = self.value(path, name)
        if value is None:
            return None
        return tuple(int.from_bytes(value[at : at + 4], "big") for at in range(0, len(value), 4))

    def texts(self, path: str, name: str) -> tuple[str, ...] | None:
        """A property's strings."""
        value = self.value(path, name)
        if value is None:
            return None
        return tuple(text.decode(errors="replace") for text in value.rstrip(b"\0").split(b"\0"))

    def _offset(self, path: str) -> int:
        try:
            return int(self._tree.path_offset(path))
        except self._libfdt.FdtException as error:
            raise KeyError(path) from error

    def _nodes(self, path: str) -> Iterator[int]:
        node = self._tree.first_subnode(self._offset(path), self._libfdt.QUIET_NOTFOUND)
        while node >= 0:
            yield node
            node = self._tree.next_subnode(node, self._libfdt.QUIET_NOTFOUND)
