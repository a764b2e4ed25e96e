"""What one domain can do with its transactions to others' time, and to the memory of all."""

from __future__ import annotations

import tracemalloc

import pytest

from tests.xenstore.helpers import Store
from xenvirtio.xenstore.permissions import parse_permissions
from xenvirtio.xenstore.transaction import Transaction
from xenvirtio.xenstore.tree import Tree, change_of
from xenvirtio.xenstore.watch import Watch, WatchIndex
from xenvirtio.xenstore.wire import MessageType as M

NODES = 1000


@pytest.fixture
def store() -> Store:
    """Domain 3 has a directory of its own."""
    store = Store()
    store.ask("dom0", M.INTRODUCE, "3|1|1|")
    store.ask("dom0", M.MKDIR, "/local/domain/3/data|")
    store.ask("dom0", M.SET_PERMS, "/local/domain/3/data|n3|")
    return store


def begin(store: Store) -> int:
    return int(store.ask("dom3", M.TRANSACTION_START, "|").rstrip(b"\0"))


def test_permissions_changed_again_and_again_cost_no_more_each_time() -> None:
    """They were all kept until the commit, and each request went through all of them."""
    tree = Tree()
    tree.put("/", b"", parse_permissions(["n0"]))
    tree.put("/a", b"", parse_permissions(["n3"]))
    transaction = Transaction(tree)
    for number in range(50):
        former = transaction.find("/a")
        assert former is not None
        transaction.put("/a", b"", parse_permissions(["n3", f"r{number}"]))
        transaction.note([change_of(transaction, "/a", former.permissions)])
    (change,) = transaction.commit()
    assert set(change.readable_by) == {parse_permissions(entries) for entries in (["n0"], ["n3"], ["n3", "r49"])}


def test_who_could_read_before_the_transaction_learns_of_it(store: Store) -> None:
    store.ask("dom3", M.SET_PERMS, "data|n3|r5|")
    store.ask("dom5", M.WATCH, "/local/domain/3/data|t|")
    store.events("dom5")
    number = begin(store)
    for entries in ("n3|r6|", "n3|r7|", "n3|"):
        assert store.say("dom3", M.SET_PERMS, f"data|{entries}", number) == "OK|"
    assert store.say("dom3", M.TRANSACTION_END, "T|", number) == "OK|"
    assert store.events("dom5") == ["/local/domain/3/data|t"]


def test_several_transactions_do_not_evade_the_quota_of_nodes(store: Store) -> None:
    transactions = []
    for part in range(4):
        store.ask("dom3", M.MKDIR, f"data/{part}|")
    for part in range(4):
        number = begin(store)
        transactions.append(number)
        for index in range(400):
            assert store.say("dom3", M.WRITE, f"data/{part}/{index}|x", number) == "OK|"
    answers = [store.say("dom3", M.TRANSACTION_END, "T|", number) for number in transactions]
    assert answers == ["OK|", "OK|", "!ENOSPC", "!ENOSPC"]
    assert store.server.tree.nodes_owned(3) == 5 + 2 * 400 <= NODES
    number = begin(store)  # less is always allowed
    store.ask("dom3", M.RM, "data/0|", number)
    assert store.say("dom3", M.TRANSACTION_END, "T|", number) == "OK|"


def test_a_commit_makes_no_more_events_than_have_room(store: Store) -> None:
    """128 watches with long tokens and 900 nodes: 460 MB of events at once, of which 2.6 MB have room."""
    for index in range(128):
        store.ask("dom3", M.WATCH, f"data|{index:03}{'t' * 4000}|")
    store.events("dom3")
    number = begin(store)
    for index in range(900):
        store.ask("dom3", M.WRITE, f"data/{index}|x", number)
    tracemalloc.start()
    try:
        assert store.say("dom3", M.TRANSACTION_END, "T|", number) == "OK|"
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(store.events("dom3")) > 128, "those that have room come"
    assert peak_bytes < 20 << 20


def test_small_events_are_counted_with_what_they_cost(store: Store) -> None:
    """A commit queued 126,000 of them for one domain: 34 MB, and most of a second."""
    for index in range(128):
        store.ask("dom3", M.WATCH, f"data|{index}|")
    store.events("dom3")
    number = begin(store)
    for index in range(990):
        store.ask("dom3", M.MKDIR, f"data/{index}|", number)
    store.ask("dom3", M.TRANSACTION_END, "T|", number)
    assert 1000 < len(store.events("dom3")) < 25_000


def test_a_deep_path_is_cut_only_where_somebody_watches() -> None:
    index: WatchIndex[str] = WatchIndex()
    watches = [Watch("w", path, path.encode(), b"t") for path in ("/", "/a", "/a/a/a", "/a/a/a/a", "/b/b/b", "@x")]
    for watch in watches:
        index.add(watch)
    found = [(group.distance, [watch.path for watch in group.watches]) for group in index.groups_at("/a" * 1000)]
    assert found == [(996, ["/a/a/a/a"]), (997, ["/a/a/a"]), (999, ["/a"]), (1000, ["/"])]
    assert len(list(index._watched("/a" * 1000))) < 10
    assert [group.distance for group in index.groups_at("@x/y")] == [1]
    assert [group.distance for group in index.groups_at("/")] == [0]
    for watch in watches:
        index.remove(watch)
    assert not index.groups_at("/a" * 1000)
    assert not index._lengths
