from __future__ import annotations

import pytest

from xenvirtio.ids import DomId
from xenvirtio.xenstore.permissions import Access, access_of, inherit, parse_permissions, without
from xenvirtio.xenstore.wire import RefusedError


@pytest.mark.parametrize("texts", [["n0"], ["r1", "b2", "w65535"], ["n7", "r7"]])
def test_entries_round_trip(texts: list[str]) -> None:
    assert [str(entry) for entry in parse_permissions(texts)] == texts


@pytest.mark.parametrize("texts", [[], [""], ["x0"], ["r"], ["r-1"], ["r65536"], ["r 1"], ["rw1"], ["r1\n"]])
def test_bad_entries(texts: list[str]) -> None:
    with pytest.raises(RefusedError, match="EINVAL"):
        parse_permissions(texts)


@pytest.mark.parametrize(
    ("texts", "domids", "access"),
    [
        (["n1"], {1}, Access.OWNER),
        (["n1"], {2}, Access.NONE),
        (["r1"], {2}, Access.READ),
        (["n1", "w2", "b2"], {2}, Access.WRITE),  # the first match decides
        (["b1", "n2"], {2}, Access.NONE),
        (["n1", "r2"], {3, 2}, Access.READ),  # as the agent of its target
        (["n1"], {3, 1}, Access.OWNER),
        (["n0", "r32757"], {9}, Access.READ),  # every domain
    ],
)
def test_who_may_do_what(texts: list[str], domids: set[int], access: Access) -> None:
    assert access_of(parse_permissions(texts), domids) == access


def test_an_ignored_entry_gives_nothing() -> None:
    owner, entry = parse_permissions(["n1", "b2"])
    assert access_of((owner, entry.if_exists(False)), {2}) == Access.NONE


def test_inheritance_and_death() -> None:
    entries = parse_permissions(["r0", "b2", "w3"])
    assert [str(entry) for entry in inherit(entries, DomId(4))] == ["r4", "b2", "w3"]
    assert inherit(entries, None) == entries
    assert [str(entry) for entry in without(entries, 2)] == ["r0", "w3"]
