"""The file that a journal is kept in: appended to at each change, now and then replaced by a fresh snapshot.

What always holds: the file at the path is a whole journal. It is replaced by rename alone, and what was appended before
a reply went out is in the page cache, where a kill -9 does not reach it. Nothing is synced to the disk: a machine that
goes down takes its domains with it, and a XenStore that survived them would only mislead.

A snapshot is taken when the changes have grown to the snapshot's own size, so that a change costs the same on average
however many nodes there are.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from pathlib import Path

from xenvirtio.errors import ConfigurationError
from xenvirtio.xenstore.journal import ChangeRecorder, encode_snapshot, replay
from xenvirtio.xenstore.server import XenStoreServer
from xenvirtio.xenstore.snapshot import dump, restore

COMPACT_BYTES = 1 << 20
"""Changes below this are not worth a snapshot."""
RETRY_S = 2.0


class JournalFile:
    """Keeps the state of one server; made before the server serves anybody.

    `save` goes to `XenStoreService`. When the file cannot be written (disk full) the server goes on without: that is
    told once by `warn`, and a whole snapshot is tried every RETRY_S at the next change, until one succeeds.
    """

    def __init__(
        self,
        path: Path,
        server: XenStoreServer,
        *,
        clock: Callable[[], float],
        warn: Callable[[str], None],
        compact_bytes: int = COMPACT_BYTES,
        boot: str | None = None,
    ) -> None:
        """Fill the server with what the file holds, and begin to record.

        With `boot`, which names this boot of the machine, a file of another one counts as empty: it speaks of domains
        that are gone, and whose numbers others may have now.

        Raises:
            ConfigurationError: the file is not ours, is damaged, cannot be used, or another process keeps it.
        """
        self._path = path
        self._server = server
        self._clock = clock
        self._warn = warn
        self._compact_bytes = compact_bytes
        self._boot = boot
        self._descriptor = -1
        self._size_bytes = self._snapshot_bytes = 0
        self._retry_s: float | None = None
        """Not None: the file lacks changes, and is tried again then."""
        self.snapshots = 0
        try:
            self._lock = _lock(path)
            try:
                self._load()
                self._recorder = ChangeRecorder(server)
                server.record_to(self._recorder)
                self._write_snapshot()
            except BaseException:
                os.close(self._lock)
                raise
        except OSError as error:
            raise ConfigurationError(str(path), error.strerror or str(error), "choose a file for the state") from error

    def save(self) -> None:
        """Write what has changed since the last call."""
        record = self._recorder.take()
        if not record:
            return
        try:
            if self._retry_s is None:
                self._append(record)
            elif self._clock() >= self._retry_s:
                self._write_snapshot()
                self._retry_s = None
                self._warn(f"{self._path}: the state is kept again")
        except OSError as error:
            if self._retry_s is None:
                self._warn(f"{self._path}: {error.strerror}: changes are not kept; a restart would lose them")
            self._retry_s = self._clock() + RETRY_S

    def close(self) -> None:
        """Write what is left and let go of the file."""
        self._retry_s = None if self._retry_s is None else self._clock()
        self.save()
        os.close(self._descriptor)
        os.close(self._lock)

    def _load(self) -> None:
        content = self._path.read_bytes() if self._path.exists() else b""
        if not content:
            return  # a new store; also an empty file that somebody made for us
        found = replay(str(self._path), content)
        if found.ignored_bytes:
            self._warn(f"{self._path}: an unfinished record at the end ({found.ignored_bytes} bytes) is ignored")
        if self._boot is not None and found.state.get("boot") != self._boot:
            self._warn(f"{self._path}: is of an earlier boot of this machine, and ignored")
            return
        try:
            restore(self._server, found.state)
        except ConfigurationError as error:
            remedy = "move it away to start with an empty store"
            raise ConfigurationError(str(self._path), error.problem, remedy) from error

    def _append(self, record: bytes) -> None:
        try:
            _write_all(self._descriptor, record)
        except OSError:
            os.ftruncate(self._descriptor, self._size_bytes)  # nothing may follow half a record
            raise
        self._size_bytes += len(record)
        if self._size_bytes - self._snapshot_bytes > max(self._compact_bytes, self._snapshot_bytes):
            self._compact()

    def _compact(self) -> None:
        try:
            self._write_snapshot()
        except OSError as error:  # what there is, is whole; only longer than it need be
            self._warn(f"{self._path}: no new snapshot: {error.strerror}")
            self._snapshot_bytes = self._size_bytes

    def _write_snapshot(self) -> None:
        fresh = Path(f"{self._path}.new")
        content = encode_snapshot({**dump(self._server), "boot": self._boot})
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC
        descriptor = os.open(fresh, flags | os.O_NOFOLLOW, 0o600)  # a link put there must not cost another file
        try:
            _write_all(descriptor, content)
            os.replace(fresh, self._path)
        except OSError:
            os.close(descriptor)
            fresh.unlink(missing_ok=True)
            raise
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = descriptor
        self._size_bytes = self._snapshot_bytes = len(content)
        self.snapshots += 1


def _lock(path: Path) -> int:
    """Hold FILE.lock: two servers that keep one state would lose each other's changes. A kill releases it."""
    descriptor = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise ConfigurationError(str(path), "another xenvirtio store keeps its state here") from None
    return descriptor


def _write_all(descriptor: int, content: bytes) -> None:
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(descriptor, rest) :]
