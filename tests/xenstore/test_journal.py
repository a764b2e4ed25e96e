from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.xenstore.helpers import Store
from xenvirtio.errors import ConfigurationError
from xenvirtio.ids import DomId
from xenvirtio.xenstore import journal_file
from xenvirtio.xenstore.journal import HEADER, ChangeRecorder, encode_changes, encode_snapshot, replay
from xenvirtio.xenstore.journal_file import JournalFile
from xenvirtio.xenstore.snapshot import dump, restore
from xenvirtio.xenstore.wire import MessageType as M

PATHS = [
    "/a",
    "/a/b",
    "/a/b/c",
    "/a/d",
    "/tool/x",
    "/tool",
    "/local/domain/1/x",
    "/local/domain/2",
    "/local/domain/2/y",
]
WHO = ["dom0", "dom1", "dom2"]

NODES = st.tuples(
    st.sampled_from([M.WRITE, M.MKDIR, M.RM, M.SET_PERMS]), st.sampled_from(PATHS), st.sampled_from(["0", "1", "\xff"])
)
OTHERS = st.sampled_from(
    [
        (M.INTRODUCE, "3|1|1|"),
        (M.RELEASE, "3|"),
        (M.RELEASE, "2|"),
        (M.SET_TARGET, "1|2|"),
        (M.SET_QUOTA, "1|nodes|7|"),
        (M.SET_QUOTA, "watches|9|"),
        (M.SET_FEATURE, "5|2|"),
        (M.RESUME, "1|"),
        (M.WATCH, "x|t|"),
        (M.WATCH, "/a|u|1|"),
        (M.UNWATCH, "x|t|"),
        (M.RESET_WATCHES, "|"),
        (M.TRANSACTION_START, "|"),
    ]
)
ENDS = st.tuples(st.just(M.TRANSACTION_END), st.sampled_from(["T|", "F|"]))
STEPS = st.lists(st.tuples(st.sampled_from(WHO), st.integers(0, 2), st.one_of(NODES, OTHERS, ENDS)), max_size=40)


def comparable(state: dict[str, Any]) -> dict[str, Any]:
    """A state without what may differ: generations, the order of all nodes (that of children may not, which DIRECTORY
    shows), clients that have nothing but a number."""
    clients = {
        domid: {**left, "last_transaction_id": None}
        for domid, left in state["connections"].items()
        if left["watches"] or left["transactions"]
    }
    nodes = {path: rest for path, *rest in state["nodes"]}
    return {**state, "generation": None, "nodes": nodes, "connections": clients}


def populated() -> Store:
    store = Store()
    store.home(1)
    store.home(2)
    return store


def payload(step: tuple[Any, ...]) -> bytes:
    kind, *rest = step
    if len(rest) == 1:
        return str(rest[0]).replace("|", "\0").encode()
    path, value = rest
    text = {M.WRITE: f"{path}|{value}", M.SET_PERMS: f"{path}|n{ord(value) % 3}|b77|r2|"}.get(kind, f"{path}|")
    return text.replace("|", "\0").encode("latin-1")


@given(STEPS)
def test_a_replayed_journal_is_the_server(steps: list[tuple[str, int, tuple[Any, ...]]]) -> None:
    store = populated()
    recorder = ChangeRecorder(store.server)
    content = encode_snapshot(dump(store.server))
    store.server.record_to(recorder)
    for who, transaction, step in steps:
        store.ask(who, step[0], payload(step), transaction)
        content += recorder.take()
    found = replay("journal", content)
    assert not found.ignored_bytes
    assert comparable(found.state) == comparable(dump(store.server))
    again = Store()
    restore(again.server, found.state)
    assert comparable(dump(again.server)) == comparable(dump(store.server))
    assert again.say("dom0", M.CONTROL, "check|") == "OK|"
    assert again.server.tree.generation > store.server.tree.generation
    names = [store.say("dom0", M.DIRECTORY, f"{path}|") for path in ("/", *PATHS)]
    assert [again.say("dom0", M.DIRECTORY, f"{path}|") for path in ("/", *PATHS)] == names


def journal_of_three() -> tuple[bytes, list[int]]:
    """A journal with three values written to /a, and where its records end."""
    store = Store()
    recorder = ChangeRecorder(store.server)
    content = encode_snapshot(dump(store.server))
    store.server.record_to(recorder)
    ends = [len(content)]
    for number in range(3):
        store.say("dom0", M.WRITE, f"/a|{number}")
        content += recorder.take()
        ends.append(len(content))
    return content, ends


def value_of_a(content: bytes) -> str | None:
    nodes = {path: value for path, value, _ in replay("journal", content).state["nodes"]}
    return nodes.get("/a")


def test_a_journal_cut_anywhere_after_its_snapshot_holds_the_whole_records_before() -> None:
    content, ends = journal_of_three()
    for length in range(ends[0], len(content) + 1):
        whole = sum(end <= length for end in ends) - 1
        assert value_of_a(content[:length]) == [None, "0", "1", "2"][whole]
        assert replay("journal", content[:length]).ignored_bytes == length - ends[whole]


def test_a_garbled_last_record_is_ignored_and_one_before_is_not() -> None:
    content, ends = journal_of_three()
    for place in range(ends[2], ends[3]):
        garbled = content[:place] + bytes([content[place] ^ 0x10]) + content[place + 1 :]
        assert value_of_a(garbled) == "1"
    assert value_of_a(content + b"\0" * 4096) == "2"
    middle = content[: ends[1] + 3] + b"?" + content[ends[1] + 4 :]
    with pytest.raises(ConfigurationError, match=f"journal: damaged at byte {ends[1]}, with .*truncate -s {ends[1]}"):
        replay("journal", middle)


@pytest.mark.parametrize(
    "content",
    [
        b"x",
        b"\x7fELF" + b"\n" * 100,
        HEADER,
        HEADER + b"00000000 {}\n",
        HEADER + b"no record\n",
        encode_snapshot({}),
        encode_snapshot({"format": 9}),
        encode_snapshot({"format": 1, "nodes": 5}),
        encode_snapshot(dump(Store().server)) + encode_changes([["conquer", "/"]]),
        encode_snapshot(dump(Store().server)) + encode_changes([["discard", "/none"]]),
        encode_snapshot(dump(Store().server)) + encode_changes([["put"]]),
    ],
)
def test_what_is_no_journal_is_refused_in_one_line(content: bytes) -> None:
    with pytest.raises(ConfigurationError) as caught:
        replay("/run/state", content)
    assert str(caught.value).startswith("/run/state: ")
    assert "\n" not in str(caught.value)


@given(st.binary(max_size=200), st.booleans())
def test_any_bytes_end_in_a_state_or_the_error(some: bytes, good_start: bool) -> None:
    content = (journal_of_three()[0] if good_start else HEADER) + some
    try:
        assert replay("journal", content).state["format"] == 1
    except ConfigurationError:
        assert not good_start


class Kept:
    """A server whose state is kept in a file; `again` is what a kill and a restart make of it."""

    def __init__(self, path: Path, compact_bytes: int = 1 << 20) -> None:
        self.store = Store()
        self.warnings: list[str] = []
        self.path = path
        self.file = JournalFile(
            path,
            self.store.server,
            clock=lambda: self.store.now_s,
            warn=self.warnings.append,
            compact_bytes=compact_bytes,
        )

    def say(self, who: str, kind: int, request: str, transaction: int = 0) -> str:
        reply = self.store.say(who, kind, request, transaction)
        self.file.save()
        return reply

    def again(self) -> Kept:
        os.close(self.file._lock)  # what a kill does; nothing is written
        return Kept(self.path)


def test_a_file_keeps_what_happened(tmp_path: Path) -> None:
    kept = Kept(tmp_path / "state")
    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o600
    kept.say("dom0", M.WRITE, "/a/b|1")
    kept.say("dom0", M.RM, "/tool|")
    kept.say("dom0", M.TRANSACTION_START, "|")
    kept.say("dom0", M.WRITE, "/half|1", 1)  # never committed
    again = kept.again().again()  # also when nothing happened in between
    assert again.say("dom0", M.READ, "/a/b|") == "1"
    assert again.say("dom0", M.DIRECTORY, "/|") == "a|"
    assert not again.warnings


def test_a_domain_finds_its_watches_fired_and_its_transactions_in_conflict(tmp_path: Path) -> None:
    kept = Kept(tmp_path / "state")
    kept.store.home(3)
    kept.say("dom3", M.WATCH, "x|t|")
    kept.say("dom3", M.WATCH, "y|t|")
    kept.say("dom3", M.UNWATCH, "y|t|")
    assert kept.say("dom3", M.TRANSACTION_START, "|") == "1|"
    again = kept.again()
    assert again.store.events("dom3") == ["x|t"]
    assert again.say("dom3", M.TRANSACTION_END, "T|", 1) == "!EAGAIN"
    assert again.say("dom3", M.TRANSACTION_START, "|") == "2|"
    again.store.server.domain_destroyed(DomId(3))
    again.file.save()
    last = again.again()
    assert last.say("dom0", M.IS_DOMAIN_INTRODUCED, "3|") == "F|"
    assert last.store.events("dom3") == []


def test_a_broken_tail_is_ignored_with_a_warning_and_gone_after_the_start(tmp_path: Path) -> None:
    kept = Kept(tmp_path / "state")
    kept.say("dom0", M.WRITE, "/a|1")
    with kept.path.open("ab") as file:
        file.write(b'12345678 [["put","/b"')
    again = kept.again()
    assert len(again.warnings) == 1
    assert "unfinished record" in again.warnings[0]
    again.say("dom0", M.WRITE, "/c|2")
    last = again.again()
    assert last.say("dom0", M.DIRECTORY, "/|") == "tool|a|c|"
    assert not last.warnings


def test_the_file_is_compacted_and_does_not_grow(tmp_path: Path) -> None:
    kept = Kept(tmp_path / "state", compact_bytes=4096)
    for number in range(2000):
        kept.say("dom0", M.WRITE, f"/counter|{number}")
    assert kept.path.stat().st_size < 10000
    assert 10 < kept.file.snapshots < 100
    assert kept.again().say("dom0", M.READ, "/counter|") == "1999"


def test_a_change_costs_the_same_however_many_nodes_there_are(tmp_path: Path) -> None:
    kept = Kept(tmp_path / "state", compact_bytes=0)
    for number in range(2000):
        kept.say("dom0", M.WRITE, f"/many/{number}|1")
    assert kept.file.snapshots < 20  # each time it has doubled
    before = kept.path.stat().st_size
    kept.say("dom0", M.WRITE, "/many/7|2")
    assert 0 < kept.path.stat().st_size - before < 100


def test_two_servers_do_not_keep_one_state(tmp_path: Path) -> None:
    Kept(tmp_path / "state")
    with pytest.raises(ConfigurationError, match="another xenvirtio store"):
        Kept(tmp_path / "state")


@pytest.mark.parametrize("place", ["none/state", "."])
def test_a_file_that_cannot_be_is_named(tmp_path: Path, place: str) -> None:
    with pytest.raises(ConfigurationError, match=str(tmp_path)):
        Kept(tmp_path / place)


def test_an_empty_file_is_a_new_store(tmp_path: Path) -> None:
    (tmp_path / "state").touch()
    assert Kept(tmp_path / "state").say("dom0", M.DIRECTORY, "/|") == "tool|"


def test_a_full_disk_is_told_once_and_made_good_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Kept(tmp_path / "state")
    kept.say("dom0", M.WRITE, "/a|1")
    real = journal_file._write_all

    def full(descriptor: int, content: bytes) -> None:
        real(descriptor, content[: len(content) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(journal_file, "_write_all", full)
    for number in range(3):
        assert kept.say("dom0", M.WRITE, f"/b{number}|1") == "OK|"
        kept.store.now_s += 10
    assert len(kept.warnings) == 1
    assert "No space left" in kept.warnings[0]
    assert replay("it", kept.path.read_bytes()).ignored_bytes == 0
    monkeypatch.setattr(journal_file, "_write_all", real)
    kept.say("dom0", M.WRITE, "/c|1")
    assert kept.warnings[1:] == [f"{kept.path}: the state is kept again"]
    assert kept.again().say("dom0", M.DIRECTORY, "/|") == "tool|a|b0|b1|b2|c|"


def test_the_state_of_another_boot_is_ignored_when_that_matters(tmp_path: Path) -> None:
    def opened(boot: str | None) -> tuple[Store, list[str]]:
        store, warnings = Store(), list[str]()
        file = JournalFile(tmp_path / "state", store.server, clock=lambda: 0.0, warn=warnings.append, boot=boot)
        seen = store.say("dom0", M.READ, "/a|")
        store.say("dom0", M.WRITE, "/a|1")
        file.close()
        return store, [*warnings, seen]

    assert opened("one")[1] == ["!ENOENT"]
    assert opened("one")[1] == ["1"]
    warning, seen = opened("two")[1]
    assert "earlier boot" in warning
    assert seen == "!ENOENT"
    assert opened(None)[1] == ["1"]
