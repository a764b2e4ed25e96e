"""Where Xen's source comes from: the user's own tree or tarball, else Debian's source package."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from xenvirtio.errors import ConfigurationError, ResourceError, XenvirtioError
from xenvirtio.lab.apt import SUITE, Archive, open_archive, open_sources
from xenvirtio.lab.paths import key_of
from xenvirtio.lab.process import output_of, run_logged

SOURCE_VARIABLE = "XENVIRTIO_XEN_SOURCE"
"""Names a folder or a tarball with a Xen source tree, 4.17 or newer."""

VERSION = "4.20"
"""Of Debian 13's toolstack, which works with a hypervisor of the same version only."""

_PACKAGE = "xen"
_TARBALL = rf"^xen_{re.escape(VERSION)}\.[^/]*\.orig\.tar\.xz$"
# An archive may lack a file of a version that it lists, for a while or for good; others may still have it, or have
# another 4.20 as good.
_SUITES: tuple[tuple[str, Callable[[], Archive]], ...] = (
    (SUITE, open_archive),
    *((suite, lambda suite=suite: open_sources(suite)) for suite in (f"{SUITE}-security", "testing", "sid")),
)


def given_source() -> Path | None:
    """The tree or tarball that the user named, or None for Debian's.

    Raises:
        ConfigurationError: there is no such file, or the folder is no source tree of Xen.
    """
    value = os.environ.get(SOURCE_VARIABLE)
    if not value:
        return None
    path = Path(value).expanduser()
    where = f"{SOURCE_VARIABLE} or --xen-source"
    if path.is_dir() and not (path / "xen/Makefile").is_file():
        raise ConfigurationError(where, f"{path} has no xen/Makefile", "give the top of a Xen source tree")
    if not path.exists():
        raise ConfigurationError(where, f"{path} does not exist", "give a folder or a tarball with Xen's source")
    return path.resolve()


def source_key(source: Path | None) -> str:
    """A hash over what would be built; nothing for Debian's, of which any 4.20 is as good."""
    if source is None:
        return ""
    if source.is_file():
        return key_of(source)
    names = _files_of(source)
    return key_of(*(part for name in names for part in (name, source / name)))


def unpack_source(source: Path | None, into: Path, log: Path) -> None:
    """Put the source tree into `into`, which is then built in: a given folder is never written to.

    Raises:
        ResourceError: no suite has the package's file (each is named with its reason), or the tarball is none.
    """
    if source is not None and source.is_dir():
        for name in _files_of(source):
            (into / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source / name, into / name, follow_symlinks=False)
        return
    tarball = fetch_debian_source() if source is None else source
    run_logged("unpacking Xen", ["tar", "-xf", tarball, "-C", into, "--strip-components=1"], log)
    if not (into / "xen/Makefile").is_file():
        raise ResourceError(f"{tarball} has no xen/Makefile below its first folder: no source of Xen")


def fetch_debian_source() -> Path:
    """The upstream tarball of Debian's source package: Debian's patches concern packaging, so it is enough.

    Raises:
        ResourceError: no suite has the file; the message says what was looked for where.
    """
    failures = []
    for suite, open_suite in _SUITES:
        try:
            return open_suite().source_file(_PACKAGE, _TARBALL)
        except XenvirtioError as error:
            failures.append(f"\n  {suite}: {_reason(error)}")
    raise ResourceError(
        f"Xen {VERSION}: the source package's tarball is in none of Debian's suites:{''.join(failures)}\n"
        f"try again later, or give a source tree or tarball of Xen with --xen-source or ${SOURCE_VARIABLE}"
    )


def _reason(error: XenvirtioError) -> str:
    """What went wrong and for which file, without the log that follows."""
    text = str(error)
    failed = re.search(r"Failed to fetch (\S+)\s+(.*)", text)
    return f"{failed[1]}: {' '.join(failed[2].split())}" if failed else text.partition("\n")[0]


def _files_of(folder: Path) -> list[str]:
    """What of a tree is source: what git knows or does not ignore, or everything where there is no git."""
    if (folder / ".git").exists():
        listing = output_of(
            f"listing {folder}",
            ["git", "-C", folder, "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--deduplicate"],
        )
        names = [name for name in listing.split("\0") if name]
    else:
        names = [str(path.relative_to(folder)) for path in folder.rglob("*")]
    return sorted(name for name in names if (folder / name).is_file())
