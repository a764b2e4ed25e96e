"""A package source of the lab's own: Debian 13 for arm64, beside the host's apt and never touching it.

The mirror, proxies and time-outs are those the host's own apt is configured with. Packages are unpacked,
never installed: none of their code runs here.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from xenvirtio.errors import ConfigurationError, ResourceError
from xenvirtio.lab.paths import cache_root, locked
from xenvirtio.lab.process import output_of, run_logged

SUITE = "trixie"
ARCHITECTURE = "arm64"
MIRROR_VARIABLE = "XENVIRTIO_LAB_MIRROR"
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
APT_HELPER = Path("/usr/lib/apt/apt-helper")

_CONFIGURATION = """\
{host_acquire}
APT::Architecture "{architecture}";
APT::Architectures {{ "{architecture}"; }};
APT::Sandbox::User "root";
APT::Install-Recommends "false";
APT::Get::List-Cleanup "false";
Acquire::Languages "none";
Debug::NoLocking "true";
Dir::State "{folder}/state";
Dir::State::status "{folder}/status";
Dir::Cache "{folder}/cache";
Dir::Etc::sourcelist "{folder}/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::parts "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
Dir::Log "{folder}/log";
"""


def host_mirror() -> str:
    """The Debian mirror the host's apt uses, or what `$XENVIRTIO_LAB_MIRROR` says.

    Raises:
        ConfigurationError: the host's apt has no Debian source.
    """
    given = os.environ.get(MIRROR_VARIABLE)
    if given:
        return given.rstrip("/")
    for uri, release in _host_sources():
        if "security" not in release and "security" not in uri and uri.endswith("debian"):
            return uri
    raise ConfigurationError(
        "apt", "the host's sources name no Debian mirror", f"set {MIRROR_VARIABLE} to the address of one"
    )


def security_mirror() -> str:
    """Where Debian's security updates are: beside the mirror, as deb.debian.org has them, unless the host says."""
    if MIRROR_VARIABLE not in os.environ:
        for uri, release in _host_sources():
            if "security" in release and "debian" in uri:
                return uri
    return f"{host_mirror()}-security"


def _host_sources() -> list[tuple[str, str]]:
    """Address and release of every package source of the host's apt."""
    listing = output_of(
        "reading the host's apt sources",
        ["apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE)", "Created-By: Packages"],
    )
    pairs = (line.partition(" ") for line in listing.splitlines())
    return [(uri.rstrip("/"), release) for uri, _, release in pairs]


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file of a source package: where it is, how it is called, and `HASH:hex` to check it with."""

    uri: str
    name: str
    checksum: str


class Archive:
    """apt with lists, cache and sources of its own in a folder of the lab's cache.

    Made by `open_archive` and `open_sources`, which also fetch the package lists once per process.
    """

    def __init__(self, folder: Path, log: Path) -> None:
        self._log = log
        self._env = {"APT_CONFIG": str(folder / "apt.conf")}

    def download(self, packages: Sequence[str], *, closure: bool) -> list[Path]:
        """The .deb files of these packages, with all they depend on when `closure` is set.

        Raises:
            ResourceError: a package is unknown, or a file could not be fetched (its name is in the message).
        """
        selection = ["install", "--yes"] if closure else ["download"]
        listing = output_of(
            f"looking up {' '.join(packages)}", ["apt-get", *selection, "--print-uris", *packages], env=self._env
        )
        files = [_parse_uri(line) for line in listing.splitlines() if line.startswith("'")]
        return [self.fetch(file) for file in files]

    def source_file(self, source_package: str, name_pattern: str) -> Path:
        """The one file of a source package whose name matches, for example `\\.orig\\.tar\\.xz$`."""
        listing = output_of(
            f"looking up the source of {source_package}",
            ["apt-get", "source", "--download-only", "--print-uris", source_package],
            env=self._env,
        )
        for line in listing.splitlines():
            if line.startswith("'") and re.search(name_pattern, _parse_uri(line).name):
                return self.fetch(_parse_uri(line))
        raise ResourceError(f"source package {source_package}: no file matches {name_pattern}")

    def dependencies(self, package: str, name_pattern: str) -> list[str]:
        """Names of the packages that `package` depends on directly and that match."""
        listing = output_of(f"looking up {package}", ["apt-cache", "depends", package], env=self._env)
        names = re.findall(r"^\s*\|?Depends: <?([^>\s]+)", listing, re.MULTILINE)
        return [name for name in names if re.search(name_pattern, name)]

    def fetch(self, file: SourceFile) -> Path:
        """The file in the lab's download folder, fetched and checked when it is not there yet."""
        downloads = cache_root() / "apt" / "downloads"
        downloads.mkdir(parents=True, exist_ok=True)
        target = downloads / file.name
        if target.exists():
            return target
        partial = downloads / f".{file.name}.{os.getpid()}"
        command: list[str | Path] = [APT_HELPER, "download-file", file.uri, partial]
        if file.checksum:
            command.append(file.checksum)
        run_logged(f"fetching {file.name}", command, self._log, env=self._env)
        os.replace(partial, target)
        return target


def _parse_uri(line: str) -> SourceFile:
    """One line of `--print-uris`: `'URI' name size HASH:hex`."""
    match = re.match(r"'([^']+)' (\S+) \d+ ?(\S*)", line)
    if match is None:
        raise ResourceError(f"apt printed a line of an unknown form: {line!r}")
    # apt escapes the epoch's colon in a name as %3a; the file is kept under apt's own spelling.
    return SourceFile(match[1], match[2], match[3])


@functools.cache
def open_archive() -> Archive:
    """The lab's archive with fresh package lists."""
    return _open(cache_root() / "apt", host_mirror(), SUITE, ("deb", "deb-src"))


@functools.cache
def open_sources(suite: str) -> Archive:
    """The source packages of another suite (`sid`, `trixie-security`), for what `SUITE` lacks at the moment."""
    mirror = security_mirror() if suite.endswith("-security") else host_mirror()
    return _open(cache_root() / "apt" / "sources" / suite, mirror, suite, ("deb-src",))


def _open(folder: Path, mirror: str, suite: str, kinds: Sequence[str]) -> Archive:
    log = folder / "apt.log"
    with locked(f"apt-{suite}"):
        for name in ("state/lists/partial", "cache/archives/partial", "log"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / "status").touch()
        dump = output_of("reading the host's apt configuration", ["apt-config", "dump"])
        # Proxies, certificates and time-outs of the host hold for the lab too; its index targets do not matter.
        acquire = "\n".join(
            line
            for line in dump.splitlines()
            if line.startswith("Acquire::") and not line.startswith(("Acquire::IndexTargets", "Acquire::Languages"))
        )
        configuration = _CONFIGURATION.format(host_acquire=acquire, architecture=ARCHITECTURE, folder=folder)
        (folder / "apt.conf").write_text(configuration)
        signed = f" [signed-by={KEYRING}]" if KEYRING.exists() else ""
        sources = "".join(f"{kind}{signed} {mirror} {suite} main\n" for kind in kinds)
        (folder / "sources.list").write_text(sources)
        run_logged(
            f"fetching Debian's package lists ({suite})",
            ["apt-get", "update", "--error-on=any"],
            log,
            env={"APT_CONFIG": str(folder / "apt.conf")},
        )
    return Archive(folder, log)


def unpack(package: Path, into: Path, log: Path) -> None:
    """Unpack a .deb file over a folder; nothing of it is run.

    Links to folders that are there (`bin` of a merged /usr) are followed, where dpkg-deb alone would replace them.
    """
    into.mkdir(parents=True, exist_ok=True)
    script = 'set -e; dpkg-deb --fsys-tarfile "$1" | tar -x -C "$2" --keep-directory-symlink --no-same-owner'
    run_logged(f"unpacking {package.name}", ["sh", "-c", script, "sh", package, into], log)


def drop_downloads() -> None:
    """Forget all downloaded packages and lists."""
    shutil.rmtree(cache_root() / "apt", ignore_errors=True)
