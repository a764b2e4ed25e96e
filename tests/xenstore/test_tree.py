from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from xenvirtio.ids import DomId
from xenvirtio.xenstore.permissions import parse_permissions
from xenvirtio.xenstore.tree import Tree, create, remove


def new_tree() -> Tree:
    tree = Tree()
    tree.put("/", b"", parse_permissions(["n0"]))
    return tree


def names(tree: Tree, path: str) -> list[str]:
    node = tree.find(path)
    assert node is not None
    return list(node.names())


def test_creating_makes_directories_and_inherits() -> None:
    tree = new_tree()
    changes = create(tree, "/a/b/c", b"v", DomId(3))
    assert [(change.path, change.subtree_watches) for change in changes] == [("/a/b/c", True)]
    assert [path for path, _ in tree.items()] == ["/", "/a", "/a/b", "/a/b/c"]
    assert {str(node.permissions[0]) for path, node in tree.items() if path != "/"} == {"n3"}
    assert tree.nodes_owned(3) == 3


def test_children_keep_the_order_they_came_in() -> None:
    tree = new_tree()
    for name in ("z", "a", "m"):
        create(tree, f"/{name}", b"", None)
    assert names(tree, "/") == ["z", "a", "m"]
    root = tree.find("/")
    assert root is not None
    assert root.listing() == b"z\0a\0m\0"


def test_removal_takes_the_subtree_and_its_accounts() -> None:
    tree = new_tree()
    create(tree, "/a/b/c", b"v", DomId(3))
    create(tree, "/a/d", b"v", DomId(3))
    changes = remove(tree, "/a")
    assert {(change.path, change.subtree_watches) for change in changes} == {
        ("/a", True), ("/a/b", False), ("/a/d", False), ("/a/b/c", False)
    }  # fmt: skip
    assert len(tree) == 1
    assert (tree.nodes_owned(3), tree.bytes_owned(3), tree.paths_naming(3)) == (0, 0, [])
    assert names(tree, "/") == []


def test_each_change_takes_a_new_generation_the_parents_included() -> None:
    tree = new_tree()
    create(tree, "/a", b"", None)
    root, node = tree.find("/"), tree.find("/a")
    assert root is not None
    assert node is not None
    before = root.generation, node.generation
    create(tree, "/a/b", b"", None)
    assert root.generation == before[0]
    assert node.generation > before[1]


def test_a_node_that_is_being_read_is_copied() -> None:
    tree = new_tree()
    create(tree, "/a", b"old", None)
    seen = tree.find("/a")
    assert seen is not None
    seen.readers += 1
    tree.put("/a", b"new", seen.permissions)
    create(tree, "/a/b", b"", None)
    now = tree.find("/a")
    assert now is not None
    assert (seen.value, list(seen.names())) == (b"old", [])
    assert (now.value, list(now.names())) == (b"new", ["b"])


paths = st.lists(st.sampled_from("abc"), min_size=1, max_size=3).map(lambda parts: "/" + "/".join(parts))


@given(st.lists(st.tuples(st.booleans(), paths, st.integers(1, 3)), max_size=30))
def test_accounts_and_indexes_always_agree_with_the_nodes(steps: list[tuple[bool, str, int]]) -> None:
    tree = new_tree()
    for adds, path, owner in steps:
        if adds and tree.find(path) is None:
            create(tree, path, b"x" * owner, DomId(owner))
        elif not adds and tree.find(path) is not None:
            remove(tree, path)
    nodes = dict(tree.items())
    for owner in (1, 2, 3):
        owned = {path for path, node in nodes.items() if node.permissions[0].domid == owner}
        assert set(tree.paths_naming(owner)) == owned
        assert tree.nodes_owned(owner) == len(owned)
        assert tree.bytes_owned(owner) == sum(nodes[path].size_bytes for path in owned)
    for path, node in nodes.items():
        prefix = "/" if path == "/" else path + "/"
        below = [other[len(prefix) :] for other in nodes if other.startswith(prefix) and other != "/"]
        assert sorted(node.names()) == sorted(name for name in below if "/" not in name)
        assert node.names_bytes == sum(len(name) + 1 for name in node.names())
