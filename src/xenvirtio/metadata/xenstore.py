"""The directory in XenStore: each domain's records under its own `data/xenvirtio`, where only it can write.

    /local/domain/3/data/xenvirtio                 n3 r0: owned by 3, readable by the peers it names
    /local/domain/3/data/xenvirtio/root/type       block
    /local/domain/3/data/xenvirtio/root/field/irq  33

A record belongs to the domain whose home it is in, and counts only when that domain owns it: what a record says of
itself proves nothing. It is written and read in transactions; `type` is written last, and a name without it is no
record, so that a server without transactions shows no half ones either. The toolstack (`xl`, or `xenvirtio control`)
removes a domain's home when it ends, and its records with it.

A server may restart and have lost everything: then each `find` registers what this directory has registered again.

Finders of the control domain look into every home; others may not list domains, and look where they are told to.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping

from xenvirtio.errors import ConfigurationError, XenStoreError
from xenvirtio.ids import DomId
from xenvirtio.metadata.directory import FIELDS_MAX, RECORDS_MAX, DeviceRecord, check_record, select
from xenvirtio.metadata.nonsense import NonsenseLog
from xenvirtio.xenstore.client import Operations, XenStoreClient

FOLDER = "data/xenvirtio"
DOMAINS = "/local/domain"
_TOKEN = "metadata"
_SKIPPED = {"ENOENT", "EACCES"}
"""Reading another domain's home: it has none, or does not let us."""


class XenStoreDirectory:
    """`Directory` over a XenStore client, which it closes."""

    def __init__(self, client: XenStoreClient, peers: Iterable[DomId] = ()) -> None:
        """`peers` may read what is registered here, and are looked at beside this domain by `find`."""
        self._client = client
        self._peers = tuple(peers)
        self._own: DomId | None = None
        self._watched: set[str] = set()
        self._nonsense = NonsenseLog()
        self._registered: dict[str, tuple[str, dict[str, str]]] = {}

    # -- this domain's records

    def register(self, name: str, type: str, fields: Mapping[str, str]) -> None:
        check_record(name, type, fields)
        self._write(name, type, fields)
        self._registered[name] = type, dict(fields)

    def _write(self, name: str, type: str, fields: Mapping[str, str]) -> None:
        own = self._own_domid()
        readers = [f"r{peer}" for peer in self._peers if peer != own]

        def write(store: Operations) -> None:
            # What is made inside inherits the permissions of its folder.
            store.mkdir(FOLDER)
            store.set_permissions(FOLDER, [f"n{own}", *readers])
            if store.exists(f"{FOLDER}/{name}"):
                store.rm(f"{FOLDER}/{name}")
            for key, value in fields.items():
                store.write(f"{FOLDER}/{name}/field/{key}", value)
            store.write(f"{FOLDER}/{name}/type", type)

        self._client.transact(write)

    def withdraw(self, name: str) -> None:
        check_record(name, "any", {})
        self._registered.pop(name, None)
        try:
            self._client.rm(f"{FOLDER}/{name}")
        except XenStoreError as error:
            if error.name != "ENOENT":
                raise

    def _restore(self) -> None:
        """Register again what a server that has lost its state has forgotten."""
        for name, (type, fields) in self._registered.items():
            if not self._client.exists(f"{FOLDER}/{name}/type"):
                self._write(name, type, fields)

    def _own_domid(self) -> DomId:
        if self._own is None:
            text = self._client.read_optional("domid")
            self._own = DomId(0) if text is None else _domid(text)
            if self._own is None:
                raise ConfigurationError("XenStore: domid", f"found {text!r}", "allowed: this domain's number")
        return self._own

    # -- everybody's

    def find(self, *, type: str | None = None) -> list[DeviceRecord]:
        self._watch_new_domains()
        self._client.pump()  # what changes from here on is an event that `find` has not seen
        self._restore()
        found: list[DeviceRecord] = []
        for domid in self._domains():
            found += self._records_of(domid)
        return select(found, type)

    def _domains(self) -> list[DomId]:
        try:
            names = self._client.directory(DOMAINS)
        except XenStoreError as error:
            if error.name not in _SKIPPED:
                raise
            return sorted({self._own_domid(), *self._peers})
        return [domid for name in names if (domid := _domid(name)) is not None]

    def _records_of(self, domid: DomId) -> list[DeviceRecord]:
        folder = f"{DOMAINS}/{domid}/{FOLDER}"
        try:
            return self._client.transact(lambda store: self._read(store, domid, folder))
        except XenStoreError as error:
            if error.name == "EAGAIN":  # it writes faster than we read: its own loss
                self._nonsense.report(domid, "", "changes all the time")
            elif error.name not in _SKIPPED:
                raise
        return []

    def _read(self, store: Operations, domid: DomId, folder: str) -> list[DeviceRecord]:
        found = []
        names = store.directory(folder)
        for name in names[:RECORDS_MAX]:
            try:
                record = self._read_one(store, domid, folder, name)
                check_record(record.name, record.type, record.fields)
            except XenStoreError as error:
                if error.name not in _SKIPPED:
                    raise
            except ConfigurationError as error:
                self._nonsense.report(domid, name, str(error))
            else:
                found.append(record)
        if len(names) > RECORDS_MAX:
            self._nonsense.report(domid, "", f"{len(names)} records, of which {RECORDS_MAX} are looked at")
        return found

    def _read_one(self, store: Operations, domid: DomId, folder: str, name: str) -> DeviceRecord:
        """Raises XenStoreError for what is no record (yet), ConfigurationError for one that is not believed."""
        type = store.read(f"{folder}/{name}/type")
        owner = _owner(store, f"{folder}/{name}/type")
        if owner not in (None, str(domid)):
            raise ConfigurationError(f"metadata: {name}", f"owned by domain {owner}", "allowed: its own domain")
        try:
            keys = store.directory(f"{folder}/{name}/field")
        except XenStoreError as error:
            if error.name != "ENOENT":
                raise
            keys = []
        if len(keys) > FIELDS_MAX:
            raise ConfigurationError(f"metadata: {name}", f"{len(keys)} fields", f"allowed: {FIELDS_MAX}")
        fields = {key: store.read(f"{folder}/{name}/field/{key}") for key in keys}
        return DeviceRecord(name, type, domid, fields)

    # -- changes

    def _watch_new_domains(self) -> None:
        """Watch the records of every domain there is, and domains that come and go where we are told of them."""
        if not self._watched:
            for event in ("@introduceDomain", "@releaseDomain"):
                try:
                    self._watch(event)
                except XenStoreError as error:
                    if error.name not in ("EACCES", "ENOENT", "EINVAL", "ENOSYS"):
                        raise
        wanted = {f"{DOMAINS}/{domid}/{FOLDER}" for domid in self._domains()}
        for path in wanted - self._watched:
            self._watch(path)
        for path in [path for path in self._watched - wanted if not path.startswith("@")]:
            self._client.unwatch(path, _TOKEN)
            self._watched.discard(path)

    def _watch(self, path: str) -> None:
        self._client.watch(path, _TOKEN)
        self._watched.add(path)

    def fileno(self) -> int:
        return self._client.fileno()

    def wait_changed(self, timeout_s: float) -> bool:
        deadline_s = time.monotonic() + timeout_s
        self._watch_new_domains()
        event = self._client.next_event(max(0.0, deadline_s - time.monotonic()))
        return event is not None

    def close(self) -> None:
        self._client.close()


def _owner(store: Operations, path: str) -> str | None:
    """Return who owns a node; None from a reduced server that does not tell."""
    try:
        return store.get_permissions(path)[0][1:]
    except XenStoreError as error:
        if error.name != "ENOSYS":
            raise
        return None


def _domid(text: str) -> DomId | None:
    return DomId(int(text)) if text.isascii() and text.isdigit() and len(text) <= 5 else None
