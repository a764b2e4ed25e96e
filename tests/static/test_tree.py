"""Trees as dtc reads them: whatever a text holds comes back as it was, and nothing in it becomes a node."""

from __future__ import annotations

import shutil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xenvirtio.errors import UsageError
from xenvirtio.resources.device_tree import TreeReader, compile_tree
from xenvirtio.static.tree import EMPTY, Node, Reference, cells, quoted, source_of, texts, wide, with_chosen

needs_dtc = pytest.mark.skipif(not shutil.which("dtc"), reason="needs dtc (device-tree-compiler)")
HOSTILE = '"; }; evil { }; /include/ "x"; //\\ /* $(id) `id` \n\r\t \x7f \xff ä €'


def compiled(root: Node) -> TreeReader:
    pytest.importorskip("libfdt", reason="needs pylibfdt")
    return TreeReader(compile_tree(source_of(root), "test"))


@needs_dtc
def test_what_goes_in_comes_out() -> None:
    peer = Node("peer", {"compatible": texts("a", "b")}, label="there")
    tree = compiled(Node("/", {"wide": wide(0x1_2345_6789), "here": EMPTY, "to": cells(7, Reference("there"))}, [peer]))
    assert tree.children("/") == ["peer"]
    assert tree.cells("/", "wide") == (1, 0x23456789)
    assert tree.value("/", "here") == b""
    assert tree.value("/", "absent") is None
    assert tree.cells("/", "to") == (7, *(tree.cells("/peer", "phandle") or ()))
    assert tree.texts("/peer", "compatible") == ("a", "b")
    with pytest.raises(KeyError):
        tree.children("/nowhere")


@needs_dtc
def test_no_text_becomes_anything_else() -> None:
    tree = compiled(Node("/", {"text": texts(HOSTILE, "next")}))
    assert tree.texts("/", "text") == (HOSTILE, "next")
    assert tree.children("/") == []
    assert tree.properties("/") == ["text"]


@needs_dtc
@settings(max_examples=30, deadline=None)
@given(st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])), min_size=1, max_size=20))
def test_any_texts_survive(values: list[str]) -> None:
    tree = compiled(Node("/", {f"p{number}": texts(value) for number, value in enumerate(values)}))
    for number, value in enumerate(values):
        assert tree.value("/", f"p{number}") == value.encode() + b"\0"


@pytest.mark.parametrize(
    "node",
    [
        Node("a b"),
        Node("a{"),
        Node("a@1@2"),
        Node(""),
        Node("a", label="x-y"),
        Node("a", label="1"),
        Node("a", {"p q": EMPTY}),
        Node("a", {"": EMPTY}),
        Node("a", {"p": cells(1 << 32)}),
        Node("a", {"p": cells(-1)}),
        Node("a", {"p": cells(Reference("x>;"))}),
        Node("a", {"p": texts("a\0b")}),
        Node("a\n"),
    ],
)
def test_what_no_tree_can_have_is_refused(node: Node) -> None:
    with pytest.raises(UsageError):
        source_of(Node("/", {}, [node]))


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])))
def test_a_literal_is_plain_and_on_one_line(text: str) -> None:
    literal = quoted(text)
    assert literal.isascii()
    assert literal.isprintable()
    assert '"' not in literal[1:-1].replace('\\"', "")


@needs_dtc
@pytest.mark.parametrize("before", ["", "chosen { old; child { deep; }; };"])
def test_a_chosen_node_is_replaced_whole(before: str) -> None:
    pytest.importorskip("libfdt", reason="needs pylibfdt")
    host = f"/dts-v1/;\n/ {{ kept; {before} }};\n"
    tree = TreeReader(compile_tree(with_chosen(host, Node("chosen", {"new": EMPTY})), "test"))
    assert tree.properties("/") == ["kept"]
    assert tree.children("/") == ["chosen"]
    assert (tree.properties("/chosen"), tree.children("/chosen")) == (["new"], [])
