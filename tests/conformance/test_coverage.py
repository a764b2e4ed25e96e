"""The marks that docs/spec-coverage.md is made from, and the tool that makes it."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent.parent


def load_tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("spec_coverage", ROOT / "tools" / "spec_coverage.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


tool = load_tool()

ROWS = [
    ("core.1.1", "MUST", "content.tex", "10", "Status"),
    ("core.1.2", "SHOULD", "content.tex", "11", "Status"),
    ("core.2.1", "MUST NOT", "content.tex", "20", "Features"),
    ("net.1.1", "MUST", "net.tex", "1", "Network"),
]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A repository with four statements and no tests yet."""
    table = tmp_path / tool.STATEMENTS
    table.parent.mkdir(parents=True)
    header = ("id", "keyword", "file", "line", "section")
    table.write_text("".join("\t".join(row) + "\n" for row in [header, *ROWS]))
    (tmp_path / "docs").mkdir()
    return tmp_path


def write_test(tree: Path, text: str, name: str = "test_x.py") -> None:
    (tree / "tests" / name).write_text(text)


def test_every_mark_and_reason_of_this_tree_is_valid() -> None:
    coverage = tool.collect()
    assert coverage.problems + tool.problems_of_areas(coverage.statements) == []


def test_the_statements_are_those_of_the_edition() -> None:
    statements = tool.read_statements(ROOT / tool.STATEMENTS).values()
    assert len(statements) == 370
    assert sum(statement.is_mandatory for statement in statements) == 275


def test_marks_are_found_on_functions_classes_and_modules(tree: Path) -> None:
    write_test(
        tree,
        "pytestmark = pytest.mark.spec('core.1.1')\n"
        "@pytest.mark.spec('core.1.2', 'core.2.1')\n"
        "@pytest.mark.parametrize('x', [1])\n"
        "def test_one(x): ...\n"
        "def helper(): ...\n"
        "@pytest.mark.spec('net.1.1')\n"
        "class TestTwo:\n"
        "    async def test_inner(self): ...\n",
    )
    coverage = tool.collect(tree)
    assert coverage.problems == []
    found = {id_: [test.name for test in tests] for id_, tests in coverage.proofs.items()}
    assert found == {
        "core.1.1": ["test_one", "test_inner"],
        "core.1.2": ["test_one"],
        "core.2.1": ["test_one"],
        "net.1.1": ["test_inner"],
    }


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("@pytest.mark.spec('core.9.9')\ndef test_x(): ...", "no statement 'core.9.9'"),
        ("@pytest.mark.spec(ID)\ndef test_x(): ...", "plain strings"),
        ("@pytest.mark.spec()\ndef test_x(): ...", "takes the ids"),
        ("@pytest.mark.spec('core.1.1', reason='x')\ndef test_x(): ...", "takes the ids"),
        ("@pytest.mark.spec('core.1.1')\ndef helper(): ...", "is no test"),
        ("def test_x(:", "tests/test_x.py:1"),
    ],
)
def test_wrong_marks_are_named_with_their_place(tree: Path, source: str, problem: str) -> None:
    write_test(tree, source)
    (found,) = tool.collect(tree).problems
    assert problem in found
    assert found.startswith("tests/test_x.py:1: ")


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("CORE: dict[str, str] = {'core.9.9': 'because'}", "CORE: no statement 'core.9.9'"),
        ("CORE = {'core.1.1': ' '}", "CORE: core.1.1 needs a reason"),
        ("CORE = {'core.1.1': None}", "CORE: core.1.1 needs a reason"),
        ("A = {'core.1.1': 'one'}\nB = {'core.1.1': 'two'}", "B: core.1.1 has a reason already"),
    ],
)
def test_wrong_reasons_are_named_with_their_place(tree: Path, source: str, problem: str) -> None:
    write_test(tree, source, "conformance/not_applicable_core.py")
    (found,) = tool.collect(tree).problems
    assert problem in found
    assert found.startswith("tests/conformance/not_applicable_core.py: ")


def test_what_is_proven_applies(tree: Path) -> None:
    write_test(tree, "@pytest.mark.spec('core.1.1')\ndef test_x(): ...")
    write_test(tree, "CORE = {'core.1.1': 'not ours'}", "conformance/not_applicable_core.py")
    (found,) = tool.collect(tree).problems
    assert "core.1.1 is listed as not applicable, and test_x proves it" in found


def test_the_page_counts_proven_not_applicable_and_open(tree: Path) -> None:
    write_test(tree, "@pytest.mark.spec('core.1.2')\ndef test_x(): ...")
    write_test(tree, "WHY = 'only\\n   PCI'\nCORE = {'core.1.1': WHY}", "conformance/not_applicable_core.py")
    page = tool.render(tool.collect(tree))
    assert "| [Core](#core) | 0 / 1 | 1 / 2 | 1 | 1 | 1 |" in page
    assert "| core.1.1 | MUST | content.tex:10 | not applicable: only PCI |" in page
    assert "| core.1.2 | SHOULD | content.tex:11 | [test_x](../tests/test_x.py) |" in page
    assert "| core.2.1 | MUST NOT | content.tex:20 | **open** |" in page
    assert "| Network device | 1 | 1 | 0 |" in page


def test_check_says_when_the_page_is_stale(
    tree: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    collect = tool.collect
    monkeypatch.setattr(tool, "ROOT", tree)
    monkeypatch.setattr(tool, "collect", lambda: collect(tree))
    assert tool.main(["--check"]) == 1, "there is none yet"
    assert tool.main([]) == 0
    assert tool.main(["--check"]) == 0
    write_test(tree, "@pytest.mark.spec('core.1.2')\ndef test_x(): ...")
    capsys.readouterr()
    assert tool.main(["--check"]) == 1
    assert "run tools/spec_coverage.py" in capsys.readouterr().err
    write_test(tree, "@pytest.mark.spec('core.1.3')\ndef test_x(): ...")
    assert tool.main([]) == 2
    assert "no statement 'core.1.3'" in capsys.readouterr().err
