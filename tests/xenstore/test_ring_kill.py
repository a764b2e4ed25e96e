"""kill -9 at every point of a story: each guest sees each reply and each event once, and what it was told is so.

A `Fuse` ends the server before any effect that others can see: a word or bytes written to a ring, a notification, bytes
written to the journal (half of them too), a file replaced. All pages and files stay as they are; the next life of the
server starts from them. The story is played with the kill at the first effect, at the second, and so on; in a second
test each successor is killed early as well.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.xenstore.rings import Guest, Host, port_of
from xenvirtio.channels import xenstore_ring
from xenvirtio.ids import DomId
from xenvirtio.xen.emulated.client import EmulatedEventChannels
from xenvirtio.xenstore import journal_file
from xenvirtio.xenstore.wire import MessageType as M


class Killed(BaseException):
    """The server is gone at this point."""


class Fuse:
    """Burns at each effect while it is lit; kills at the one before which `left` is 0."""

    def __init__(self) -> None:
        self.left = -1
        self.is_lit = False
        self.place = ""

    @contextmanager
    def lit(self) -> Iterator[None]:
        self.is_lit = True
        try:
            yield
        finally:
            self.is_lit = False

    def burn(self, place: str) -> None:
        if not self.is_lit or self.left < 0:
            return
        if self.left == 0:
            self.left = -1
            self.place = place
            raise Killed(place)
        self.left -= 1


@pytest.fixture
def fuse(monkeypatch: pytest.MonkeyPatch) -> Fuse:
    fuse = Fuse()

    def before(owner: Any, name: str, place: str) -> None:
        real = getattr(owner, name)

        def burning(*arguments: Any, **named: Any) -> Any:
            fuse.burn(place)
            return real(*arguments, **named)

        monkeypatch.setattr(owner, name, burning)

    before(xenstore_ring._Page, "__setitem__", "word")
    before(EmulatedEventChannels, "notify", "notify")
    before(EmulatedEventChannels, "bind_interdomain", "bind")
    before(os, "replace", "replace")

    copy_in = xenstore_ring._Page.copy_in

    def copy_half(page: Any, ring: int, position: int, data: Any) -> None:
        if fuse.is_lit and fuse.left == 0:
            copy_in(page, ring, position, data[: len(data) // 2])
        fuse.burn("bytes")
        copy_in(page, ring, position, data)

    monkeypatch.setattr(xenstore_ring._Page, "copy_in", copy_half)
    write_all = journal_file._write_all

    def write_half(descriptor: int, content: bytes) -> None:
        fuse.burn("journal")
        if fuse.is_lit and fuse.left == 0:
            write_all(descriptor, content[: len(content) // 2])
        fuse.burn("half a record")
        write_all(descriptor, content)
        fuse.burn("after the record")

    monkeypatch.setattr(journal_file, "_write_all", write_half)
    return fuse


class Story:
    """Two guests and dom0's kernel at work, a third guest introduced on the way, all through rings."""

    def __init__(self, folder: Path, fuse: Fuse, compact_bytes: int = 1 << 20) -> None:
        self.fuse = fuse
        self.host = Host(folder / "state", compact_bytes=compact_bytes)
        self.kills = 0
        self.restart_after: Callable[[], int] = lambda: -1
        self.dom0 = Guest(self.host.host.domain(DomId(0)))  # type: ignore[arg-type]
        self.one, self.two = self.host.create(), self.host.create()
        self.third = self.host.host.create_domain(memory_bytes=1 << 20)
        self.third.offer_xenstore(with_page=True)  # as dom0less: it starts before it is introduced
        self.late = Guest(self.third)
        self._late_has_begun = False

    def play(self) -> None:
        one, two, dom0 = self.one, self.two, self.dom0
        one.send(M.WATCH, "data|t|", 1)
        one.send(M.TRANSACTION_START, "|", 2)
        one.send(M.WRITE, "data/in|x", 3, transaction=1)
        two.send(M.WATCH, "data|u|", 1)
        two.send(M.WRITE, b"data/big\0" + b"v" * 1900, 2)
        dom0.send(M.WATCH, "@introduceDomain|i|", 1)
        dom0.send(M.WATCH, "@releaseDomain|r|", 2)
        self._settle()
        one.send(M.TRANSACTION_END, "T|", 4, transaction=1)
        two.send(M.READ, "data/big|", 3)
        dom0.send(M.MKDIR, "/local/domain/3|", 3)
        dom0.send(M.SET_PERMS, "/local/domain/3|n3|", 4)
        dom0.send(M.INTRODUCE, f"3|1|{port_of(self.third)}|", 5)
        one.send(M.WRITE, "data/a|1", 5)
        self._settle()
        one.send(M.RM, "data/a|", 6)
        one.send(M.UNWATCH, "data|t|", 7)
        one.send(M.WRITE, "data/b|1", 8)
        two.send(M.MKDIR, "data/c|", 4)
        two.send(M.RM, "data/big|", 5)
        dom0.send(M.WRITE, b"/long\0" + b"w" * 3000, 6)
        dom0.send(M.READ, "/long|", 7)
        self._settle()
        dom0.send(M.RELEASE, "3|", 8)
        one.send(M.TRANSACTION_START, "|", 9)
        self._settle()

    def _settle(self) -> None:
        """Let everybody work until nothing more comes."""
        idle = rounds = 0
        guests = [self.one, self.two, self.dom0, self.late]
        while idle < 6:
            rounds += 1
            assert rounds < 1000, f"no end of it: {[guest.texts()[-3:] for guest in guests]}"
            for guest in guests:
                guest.push()
            if not self._late_has_begun and self.late.end.is_connected:
                self._late_has_begun = True
                self.late.send(M.WATCH, "x|z|", 1)
                self.late.send(M.TRANSACTION_START, "|", 2)
            kills = self.kills
            self._run()
            news = [message for guest in guests for message in guest.poll()]
            is_busy = news or self.kills != kills or not all(guest.has_sent_all for guest in guests)
            idle = 0 if is_busy else idle + 1

    def _run(self) -> None:
        try:
            with self.fuse.lit():
                self.host.run(1)
        except Killed:
            self.host.abandon()
            self._start_again()

    def _start_again(self) -> None:
        while True:
            self.kills += 1
            self.fuse.left = self.restart_after()
            try:
                with self.fuse.lit():
                    self.host = Host(self.host.state, self.host.host, compact_bytes=self.host.compact_bytes)
                return
            except Killed:
                continue

    def check(self) -> None:
        """Each was told everything once, in order, and the tree is as they were told."""
        server = self.host.server
        assert self.one.texts()[:4] == ["1:OK", "*data|t", "2:1", "3:OK"]
        committed = self.one.texts()[4]
        assert committed in (["4:OK", "4:EAGAIN"] if self.kills else ["4:OK"])
        assert (server.tree.find("/local/domain/1/data/in") is not None) == (committed == "4:OK")
        rest = self.one.texts()[5:]
        if committed == "4:OK":
            assert rest.pop(0) == "*data/in|t"
        assert rest == ["5:OK", "*data/a|t", "6:OK", "*data/a|t", "7:OK", "8:OK", "9:2"]
        two = ["1:OK", "*data|u", "2:OK", "*data/big|u", "3:" + "v" * 1900]
        assert self.two.texts() == [*two, "4:OK", "*data/c|u", "5:OK", "*data/big|u"]
        dom0 = ["1:OK", "*@introduceDomain|i", "2:OK", "*@releaseDomain|r", "3:OK", "4:OK", "*@introduceDomain|i"]
        assert self.dom0.texts() == [*dom0, "5:OK", "6:OK", "7:" + "w" * 3000, "*@releaseDomain|r", "8:OK"]
        assert self.late.texts() == ["1:OK", "*x|z", "2:1"]
        paths = {path for path, _ in server.tree.items()}
        assert {"/local/domain/1/data/b", "/local/domain/2/data/c", "/long"} <= paths
        assert not {"/local/domain/1/data/a", "/local/domain/2/data/big", "/local/domain/3"} & paths
        assert all("unfinished record" in warning for warning in self.host.warnings)

    def close(self) -> None:
        self.host.host.close()


def test_the_story_without_a_kill(tmp_path: Path, fuse: Fuse) -> None:
    story = Story(tmp_path, fuse)
    story.play()
    story.check()
    assert story.kills == 0
    story.close()


@pytest.mark.parametrize("compact_bytes", [1 << 20, 1], ids=["one journal", "a snapshot now and then"])
def test_a_kill_at_any_point_is_not_noticed(tmp_path: Path, fuse: Fuse, compact_bytes: int) -> None:
    places: set[str] = set()
    number = 0
    while True:
        folder = tmp_path / str(number)
        folder.mkdir()
        story = Story(folder, fuse, compact_bytes)
        fuse.left = number
        story.play()
        if not story.kills:
            break
        places.add(fuse.place)
        try:
            story.check()
        except AssertionError as error:
            raise AssertionError(f"killed at effect {number} ({fuse.place}): {error}") from error
        story.close()
        number += 1
    assert number > 100
    assert places >= {"word", "bytes", "notify", "journal", "half a record", "after the record"}
    assert ("replace" in places) == (compact_bytes == 1)


@pytest.mark.parametrize("seed", range(25))
def test_short_lives_one_after_the_other(tmp_path: Path, fuse: Fuse, seed: int) -> None:
    """Successors die as well, some before they serve anybody."""
    chance = random.Random(seed)
    story = Story(tmp_path, fuse, chance.choice([1, 1 << 20]))
    story.restart_after = lambda: chance.randrange(2, 40) if story.kills < 20 else -1
    fuse.left = chance.randrange(30)
    story.play()
    assert story.kills >= 3
    story.check()
    story.close()


def test_events_that_waited_for_a_guest_that_does_not_read_make_its_watches_fire(tmp_path: Path) -> None:
    host = Host(tmp_path / "state")
    guest, quiet = host.create(), host.create()
    dom0 = Guest(host.host.domain(DomId(0)))  # type: ignore[arg-type]
    guest.send(M.WATCH, "data|t|", 1)
    guest.send(M.WATCH, "other|u|", 2)
    quiet.send(M.WATCH, "data|t|", 1)
    host.run()
    guest.poll()
    quiet.poll()
    for number in range(300):
        dom0.send(M.WRITE, f"/local/domain/1/data/{number}|x", number)
        host.run(2)
        dom0.poll()
    assert len(host.server.connections_of(1)[0].outgoing) > 50
    host = host.killed()
    for _ in range(100):
        host.run(1)
        guest.poll()
        quiet.poll()
    told = guest.texts()[4:]
    kept = told[:-2]
    assert kept == [f"*data/{number}|t" for number in range(len(kept))], "what the journal had, each once"
    assert 100 < len(kept) < 300
    assert sorted(told[-2:]) == ["*data|t", "*other|u"], "and then every watch once"
    assert quiet.texts() == ["1:OK", "*data|t"], "who lost nothing is told nothing"
    host.host.close()
