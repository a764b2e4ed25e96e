from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xenvirtio.xenstore.permissions import parse_permissions
from xenvirtio.xenstore.transaction import StaleTransaction, Transaction
from xenvirtio.xenstore.tree import Tree, View, change_of, create, remove
from xenvirtio.xenstore.wire import RefusedError

Content = dict[str, tuple[bytes, tuple[str, ...], tuple[str, ...]]]


def new_tree() -> Tree:
    tree = Tree()
    tree.put("/", b"", parse_permissions(["n0"]))
    for path in ("/a", "/b", "/a/x"):
        create(tree, path, b"0", None)
    return tree


def content(tree: Tree) -> Content:
    return {
        path: (node.value, tuple(map(str, node.permissions)), tuple(sorted(node.names())))
        for path, node in tree.items()
    }


def write(view: View, path: str, value: bytes) -> None:
    node = view.find(path)
    if node is None:
        changes = create(view, path, value, None)
    else:
        view.put(path, value, node.permissions)
        changes = [change_of(view, path)]
    if isinstance(view, Transaction):
        view.note(changes)


def drop(view: View, path: str) -> None:
    if view.find(path) is not None:
        changes = remove(view, path)
        if isinstance(view, Transaction):
            view.note(changes)


def read(view: View, path: str) -> bytes | None:
    node = view.find(path)
    return None if node is None else node.value


Step = Callable[[View], object]


@pytest.mark.parametrize(
    ("inside", "outside", "conflicts"),
    [
        (lambda t: read(t, "/a"), lambda t: write(t, "/a", b"1"), True),
        (lambda t: write(t, "/a", b"2"), lambda t: write(t, "/a", b"1"), True),
        (lambda t: read(t, "/a"), lambda t: write(t, "/b", b"1"), False),
        (lambda t: read(t, "/a"), lambda t: write(t, "/a/x", b"1"), False),
        (lambda t: read(t, "/a"), lambda t: write(t, "/a/new", b"1"), True),  # the list of children changed
        (lambda t: read(t, "/n"), lambda t: write(t, "/n", b"1"), True),  # absent, then there
        (lambda t: read(t, "/a/x"), lambda t: drop(t, "/a"), True),
        (lambda t: write(t, "/a/p", b""), lambda t: write(t, "/a/q", b""), True),  # both add to /a
        (lambda t: write(t, "/a/p", b""), lambda t: write(t, "/b/q", b""), False),
        (lambda t: drop(t, "/a"), lambda t: write(t, "/a/x", b"1"), True),
        (lambda t: drop(t, "/a"), lambda t: write(t, "/b", b"1"), False),
        (lambda t: read(t, "/a"), lambda t: run(t, [("write", "/a", b"1"), ("write", "/a", b"0")]), True),
    ],
)
def test_what_conflicts(inside: Step, outside: Step, conflicts: bool) -> None:
    tree = new_tree()
    transaction = Transaction(tree)
    inside(transaction)
    outside(tree)
    after_outside = content(tree)
    if conflicts:
        with pytest.raises(RefusedError, match="EAGAIN"):
            transaction.commit()
        assert content(tree) == after_outside
    else:
        transaction.commit()


def test_a_transaction_sees_its_snapshot_and_its_own_writes_and_nobody_else_does() -> None:
    tree = new_tree()
    transaction = Transaction(tree)
    assert read(transaction, "/a") == b"0"
    write(transaction, "/b", b"mine")
    write(tree, "/a", b"theirs")
    assert (read(transaction, "/a"), read(transaction, "/b")) == (b"0", b"mine")
    assert (read(tree, "/a"), read(tree, "/b")) == (b"theirs", b"0")


def test_events_of_one_node_collapse_and_wait_for_the_commit() -> None:
    tree = new_tree()
    transaction = Transaction(tree)
    write(transaction, "/a", b"1")
    write(transaction, "/b", b"1")
    write(transaction, "/a", b"2")
    assert [change.path for change in transaction.commit()] == ["/b", "/a"]
    assert read(tree, "/a") == b"2"


def test_a_directory_replaced_in_a_transaction_loses_its_children() -> None:
    tree = new_tree()
    transaction = Transaction(tree)
    drop(transaction, "/a")
    write(transaction, "/a/y", b"1")
    assert transaction.nodes_owned(0) == tree.nodes_owned(0)
    transaction.commit()
    assert sorted(content(tree)) == ["/", "/a", "/a/y", "/b"]


def test_a_poisoned_transaction_does_nothing() -> None:
    tree = new_tree()
    before = content(tree)
    transaction = Transaction(tree)
    write(transaction, "/a", b"1")
    transaction.poison("ENOSPC")
    transaction.poison("ENOMEM")
    with pytest.raises(RefusedError, match="ENOSPC"):
        transaction.commit()
    assert content(tree) == before


def test_the_bound_of_touched_nodes_poisons() -> None:
    transaction = Transaction(new_tree(), nodes_max=2)
    read(transaction, "/a")
    read(transaction, "/b")
    with pytest.raises(RefusedError, match="ENOSPC"):
        read(transaction, "/n")
    with pytest.raises(RefusedError, match="ENOSPC"):
        transaction.commit()


def test_a_view_torn_by_others_is_still_walked_and_then_refused() -> None:
    tree = new_tree()
    transaction = Transaction(tree)
    read(transaction, "/a")  # it has seen that there is an /a/x
    drop(tree, "/a/x")
    drop(transaction, "/a")
    with pytest.raises(RefusedError, match="EAGAIN"):
        transaction.commit()


def test_a_child_that_a_torn_view_lists_can_be_made_and_removed() -> None:
    tree = new_tree()
    transaction = Transaction(tree)
    write(transaction, "/a", b"1")
    drop(tree, "/a/x")
    write(transaction, "/a/x", b"1")
    drop(transaction, "/a")
    with pytest.raises(RefusedError, match="EAGAIN"):
        transaction.commit()


def test_a_stale_transaction_ends_as_a_conflict() -> None:
    with pytest.raises(RefusedError, match="EAGAIN"):
        StaleTransaction(new_tree()).commit()


paths = st.lists(st.sampled_from("abx"), min_size=1, max_size=3).map(lambda parts: "/" + "/".join(parts))
steps = st.lists(st.tuples(st.sampled_from(["write", "drop", "read"]), paths, st.binary(max_size=3)), max_size=12)


def run(view: View, script: list[tuple[str, str, bytes]]) -> None:
    for verb, path, value in script:
        if verb == "write":
            write(view, path, value)
        elif verb == "drop":
            drop(view, path)
        else:
            read(view, path)


@given(steps)
def test_an_aborted_transaction_leaves_the_store_as_it_was(script: list[tuple[str, str, bytes]]) -> None:
    tree = new_tree()
    before = content(tree)
    transaction = Transaction(tree)
    run(transaction, script)
    transaction.abort()
    assert content(tree) == before
    assert all(node.readers == 0 for _, node in tree.items())


@given(steps)
def test_an_undisturbed_commit_equals_the_same_steps_done_directly(script: list[tuple[str, str, bytes]]) -> None:
    direct, tree = new_tree(), new_tree()
    run(direct, script)
    transaction = Transaction(tree)
    run(transaction, script)
    assert transaction.nodes_owned(0) == direct.nodes_owned(0)
    transaction.commit()
    assert content(tree) == content(direct)
    assert tree.bytes_owned(0) == direct.bytes_owned(0)


@given(steps, steps, steps)
def test_committed_transactions_are_as_if_run_one_after_the_other(
    first: list[tuple[str, str, bytes]], between: list[tuple[str, str, bytes]], second: list[tuple[str, str, bytes]]
) -> None:
    tree, serial = new_tree(), new_tree()
    transaction = Transaction(tree)
    run(transaction, first)
    run(tree, between)
    run(transaction, second)
    run(serial, between)
    try:
        transaction.commit()
    except RefusedError:
        pass
    else:
        run(serial, first + second)
    assert content(tree) == content(serial)
