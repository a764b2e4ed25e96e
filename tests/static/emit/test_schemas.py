"""The trees by dtschema: its own schemas, and ours (static/schemas) for what those of Linux and Xen would say."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

import xenvirtio.static
from tests.static.emit.example import modules, system
from xenvirtio.resources.device_tree import compile_tree
from xenvirtio.static.emit.chosen import chosen_node
from xenvirtio.static.emit.passthrough import passthrough_tree
from xenvirtio.static.tree import TWO_CELLS, Node, source_of, texts

pytestmark = [
    pytest.mark.skipif(not shutil.which("dtc"), reason="needs dtc (device-tree-compiler)"),
    pytest.mark.skipif(not shutil.which("dt-validate"), reason="needs dtschema (pip install 'xenvirtio[static]')"),
]
SCHEMAS = Path(xenvirtio.static.__file__).parent / "schemas"
ACCEPTED = (
    (r"chosen: .* do not match any of the regexes.*chosen\.yaml", "dtschema's /chosen knows no hypervisor"),
    (r"passthrough \(simple-bus\): \$nodename:0: .*simple-bus\.yaml", "Xen looks for that name"),
    (r"passthrough \(simple-bus\): xen-grant-dma: 'ranges' is a required.*simple-bus\.yaml", "Xen copies nothing else"),
    (r"cpus: multiple incompatible types", "Xen's name for a number is Linux's for a list of CPUs"),
)


def complaints(children: Sequence[Node], folder: Path) -> list[str]:
    """What dt-validate says of these nodes below a root that is in order, each complaint in one line."""
    root = Node("/", {"compatible": texts("x,y"), "model": texts("x"), **TWO_CELLS}, children)
    (folder / "x.dtb").write_bytes(compile_tree(source_of(root), "x"))
    command = ["dt-validate", "-s", str(SCHEMAS), str(folder / "x.dtb")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    said = (done.stderr + done.stdout).replace("\n\tfrom schema", " from schema")
    return [line for line in said.splitlines() if not any(re.search(pattern, line) for pattern, _ in ACCEPTED)]


def test_our_trees_are_as_their_bindings_say(tmp_path: Path) -> None:
    of = system()
    assert complaints([chosen_node(of, modules(of))], tmp_path) == []
    for domain in of.domains:
        tree = passthrough_tree(of, domain)
        if tree is not None:
            assert complaints(tree.children, tmp_path) == []


def test_every_kind_of_node_has_its_schema(tmp_path: Path) -> None:
    """A property that no binding knows, in one node of each kind: all are found."""
    of = system()
    chosen = chosen_node(of, modules(of))
    partial = passthrough_tree(of, of.description.domain("front"))
    assert partial is not None
    kinds: set[str] = set()

    def spoil(node: Node) -> None:
        compatible = node.properties.get("compatible")
        if compatible is not None and str(compatible) not in kinds:
            kinds.add(str(compatible))
            node.properties = {**node.properties, "xen,unheard-of": texts("x")}
        for child in node.children:
            spoil(child)

    spoil(chosen)
    for child in partial.children[1].children:
        spoil(child)
    said = complaints([chosen, *partial.children], tmp_path)
    found = {match[1] for line in said if (match := re.search(r"\(([\w,-]+)\): .*'xen,unheard-of'", line))}
    assert found == {
        "xen,domain", "multiboot,kernel", "multiboot,ramdisk", "multiboot,device-tree", "xen,domain-shared-memory-v1",
        "xen,evtchn-v1", "virtio,mmio", "xen,grant-dma", "generic-uio",
    }  # fmt: skip
