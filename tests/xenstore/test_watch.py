from __future__ import annotations

import pytest

from xenvirtio.xenstore.watch import Watch, WatchIndex


def matches(path: str, depth: int | None, changed: str, *, subtree: bool = True) -> bool:
    index: WatchIndex[str] = WatchIndex()
    index.add(Watch("me", path, path.encode(), b"t", depth))
    return any(list(group.reached()) for group in index.groups_at(changed, subtree=subtree))


@pytest.mark.parametrize(
    ("path", "depth", "changed", "matched"),
    [
        ("/a", None, "/a", True),
        ("/a", None, "/a/b/c", True),
        ("/a", None, "/ab", False),
        ("/a/b", None, "/a", False),
        ("/", None, "/a/b", True),
        ("/a", 0, "/a", True),
        ("/a", 0, "/a/b", False),
        ("/a", 1, "/a/b", True),
        ("/a", 1, "/a/b/c", False),
        ("/", 1, "/a", True),
        ("/", None, "@releaseDomain", False),
    ],
)
def test_a_watch_covers_what_is_below_it_down_to_its_depth(
    path: str, depth: int | None, changed: str, matched: bool
) -> None:
    assert matches(path, depth, changed) is matched


def test_what_went_with_its_directory_concerns_only_watches_of_the_very_path() -> None:
    assert matches("/a/b", None, "/a/b", subtree=False)
    assert not matches("/a", None, "/a/b", subtree=False)


@pytest.mark.parametrize(
    ("watched", "registered", "changed", "event"),
    [
        ("/", b"/", "/a/b", b"/a/b"),
        ("/a", b"/a", "/a", b"/a"),
        ("/local/domain/3/dev", b"dev", "/local/domain/3/dev/0/x", b"dev/0/x"),
    ],
)
def test_events_have_the_form_that_was_registered(watched: str, registered: bytes, changed: str, event: bytes) -> None:
    assert Watch("me", watched, registered, b"t").event(changed) == event + b"\0t\0"


def test_special_events_tell_the_domain_to_those_who_ask() -> None:
    index: WatchIndex[str] = WatchIndex()
    for watcher, path, depth in [
        ("plain", "@releaseDomain", None), ("flat", "@releaseDomain", 0), ("deep", "@releaseDomain", 1),
        ("five", "@releaseDomain/5", None), ("six", "@releaseDomain/6", None), ("other", "@introduceDomain", 1),
    ]:  # fmt: skip
        index.add(Watch(watcher, path, path.encode(), b"t", depth))
    events = {watch.watcher: path for watch, path in index.special_events("@releaseDomain", 5)}
    assert events == {
        "plain": b"@releaseDomain\0t\0", "flat": b"@releaseDomain\0t\0",
        "deep": b"@releaseDomain/5\0t\0", "five": b"@releaseDomain/5\0t\0",
    }  # fmt: skip


def test_a_removed_watch_matches_nothing() -> None:
    index: WatchIndex[str] = WatchIndex()
    watch = Watch("me", "/a", b"/a", b"t")
    index.add(watch)
    index.remove(watch)
    assert not index.groups_at("/a")


def test_a_watcher_comes_once_for_all_its_watches_of_a_path() -> None:
    index: WatchIndex[str] = WatchIndex()
    for number in range(128):
        index.add(Watch("hoarder", "/", b"/", b"%d" % number))
    index.add(Watch("other", "/a", b"/a", b"t"))
    assert [(group.watcher, len(list(group.reached()))) for group in index.groups_at("/a/b")] == [
        ("other", 1), ("hoarder", 128),
    ]  # fmt: skip
