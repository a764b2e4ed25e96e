#!/usr/bin/env python3
"""Write docs/spec-coverage.md: which statements of VIRTIO 1.4 are proven by which tests.

    tools/spec_coverage.py            write the page
    tools/spec_coverage.py --check    only say whether the page is up to date

Statements come from tests/conformance/virtio-1.4-cs01.tsv (ids, keywords and places in the specification, no text of
it), proofs from `@pytest.mark.spec("id", ...)` anywhere under tests/, read from the source without running it, and
what does not apply from the dicts {id: reason} in tests/conformance/not_applicable_*.py.

Exit status: 0 done, 1 the page is stale, 2 a mark or reason is wrong (each is named with its place).
"""

from __future__ import annotations

import argparse
import ast
import runpy
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STATEMENTS = Path("tests/conformance/virtio-1.4-cs01.tsv")
PAGE = Path("docs/spec-coverage.md")

MANDATORY = frozenset({"MUST", "MUST NOT", "SHALL", "SHALL NOT"})

AREAS_NOW = {"core": "Core", "split-ring": "Split ring", "mmio": "MMIO transport", "blk": "Block device"}
AREAS_LATER = {
    "packed-ring": "Packed ring",
    "shared-mem": "Shared memory",
    "net": "Network device",
    "console": "Console device",
    "entropy": "Entropy device",
    "scmi": "SCMI device",
    "iommu": "IOMMU device",
    "vsock": "Socket device",
    "i2c": "I2C adapter",
    "gpio": "GPIO device",
    "fs": "File system device",
}


@dataclass(frozen=True, slots=True)
class Statement:
    id: str
    keyword: str
    file: str
    line: int
    section: str

    @property
    def area(self) -> str:
        return self.id.split(".")[0]

    @property
    def is_mandatory(self) -> bool:
        return self.keyword in MANDATORY


@dataclass(frozen=True, slots=True)
class MarkedTest:
    """A marked test and where it stands; `path` is relative to the repository."""

    name: str
    path: str
    line: int


@dataclass(slots=True)
class Coverage:
    """Everything the page is made of. `problems` are lines for people; with any, the page must not be written."""

    statements: dict[str, Statement]
    proofs: dict[str, list[MarkedTest]] = field(default_factory=dict)
    not_applicable: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def of_area(self, area: str) -> list[Statement]:
        return [statement for statement in self.statements.values() if statement.area == area]

    def is_proven(self, statement: Statement) -> bool:
        return statement.id in self.proofs

    def is_open(self, statement: Statement) -> bool:
        return statement.id not in self.proofs and statement.id not in self.not_applicable


def read_statements(path: Path) -> dict[str, Statement]:
    statements: dict[str, Statement] = {}
    for row in path.read_text().splitlines()[1:]:
        id_, keyword, file, line, section = row.split("\t")
        statements[id_] = Statement(id_, keyword, file, int(line), section)
    return statements


def collect(root: Path = ROOT) -> Coverage:
    """Read statements, marks and reasons of the tree at `root`, and check each against the others."""
    coverage = Coverage(read_statements(root / STATEMENTS))
    for path in sorted((root / "tests").rglob("*.py")):
        _collect_file(coverage, path, path.relative_to(root).as_posix())
    for id_ in sorted(coverage.not_applicable.keys() & coverage.proofs.keys()):
        test = coverage.proofs[id_][0]
        coverage.problems.append(
            f"{test.path}:{test.line}: {id_} is listed as not applicable, and {test.name} proves it"
        )
    return coverage


def _collect_file(coverage: Coverage, path: Path, name: str) -> None:
    try:
        module = ast.parse(path.read_text(), name)
    except SyntaxError as error:
        coverage.problems.append(f"{name}:{error.lineno}: {error.msg}")
        return
    if path.name.startswith("not_applicable_"):
        _collect_reasons(coverage, path, name)
        return
    for test, mark in _marks(module, name):
        if not mark.args or mark.keywords:
            coverage.problems.append(f"{name}:{mark.lineno}: spec takes the ids of statements and nothing else")
        for argument in mark.args:
            _add_proof(coverage, test, argument)


def _add_proof(coverage: Coverage, test: MarkedTest, argument: ast.expr) -> None:
    where = f"{test.path}:{argument.lineno}"
    if not isinstance(argument, ast.Constant) or not isinstance(argument.value, str):
        coverage.problems.append(
            f"{where}: spec needs its ids as plain strings, so that they can be read from the source"
        )
    elif argument.value not in coverage.statements:
        coverage.problems.append(f"{where}: no statement {argument.value!r} in {STATEMENTS}")
    elif not test.name.startswith("test_"):
        coverage.problems.append(f"{where}: {test.name} is no test, it proves nothing")
    else:
        tests = coverage.proofs.setdefault(argument.value, [])
        if test not in tests:
            tests.append(test)


def _marks(module: ast.Module, path: str) -> Iterator[tuple[MarkedTest, ast.Call]]:
    """Yield every spec mark with the test it stands on: on a function, on its class, or on the whole module."""
    of_module = list(_module_marks(module))
    for node in module.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _of_function(node, path, of_module)
        elif isinstance(node, ast.ClassDef):
            of_class = of_module + [mark for mark in node.decorator_list if _is_spec(mark)]
            for inner in node.body:
                if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef):
                    yield from _of_function(inner, path, of_class)


def _of_function(
    node: ast.FunctionDef | ast.AsyncFunctionDef, path: str, inherited: list[ast.expr]
) -> Iterator[tuple[MarkedTest, ast.Call]]:
    test = MarkedTest(node.name, path, node.lineno)
    own = [mark for mark in node.decorator_list if _is_spec(mark)]
    if node.name.startswith("test_"):
        own += inherited
    for mark in own:
        if isinstance(mark, ast.Call):
            yield test, mark


def _module_marks(module: ast.Module) -> Iterator[ast.expr]:
    for node in module.body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "pytestmark" for t in node.targets):
            marks: Iterable[ast.expr] = node.value.elts if isinstance(node.value, ast.List) else [node.value]
            yield from (mark for mark in marks if _is_spec(mark))


def _is_spec(decorator: ast.expr) -> bool:
    function = decorator.func if isinstance(decorator, ast.Call) else decorator
    return ast.unparse(function) in ("pytest.mark.spec", "mark.spec")


def _collect_reasons(coverage: Coverage, path: Path, name: str) -> None:
    """Run the file (constants only) and take every public dict in it."""
    for variable, reasons in runpy.run_path(str(path)).items():
        if not variable.isupper() or variable.startswith("_") or not isinstance(reasons, dict):
            continue
        for id_, reason in reasons.items():
            if id_ not in coverage.statements:
                coverage.problems.append(f"{name}: {variable}: no statement {id_!r} in {STATEMENTS}")
            elif id_ in coverage.not_applicable:
                coverage.problems.append(f"{name}: {variable}: {id_} has a reason already")
            elif not isinstance(reason, str) or not reason.strip():
                coverage.problems.append(f"{name}: {variable}: {id_} needs a reason")
            else:
                coverage.not_applicable[id_] = " ".join(reason.split())


def render(coverage: Coverage) -> str:
    return "\n".join([*_render_summary(coverage), *_render_areas(coverage)]) + "\n"


def _render_summary(coverage: Coverage) -> Iterator[str]:
    yield "# Coverage of the VIRTIO 1.4 specification"
    yield ""
    yield "Made by `tools/spec_coverage.py` from the marks on the tests; do not edit."
    yield ""
    yield (
        "The device-normative statements of VIRTIO 1.4 committee specification 01 that concern this package, by id; "
        "the text is found in the specification's repository (tag `v1.4-cs01`) at the file and line given. "
        "Mandatory are MUST, SHALL and their negations. A statement is proven when a test marked with its id passes."
    )
    yield ""
    yield "| area | mandatory proven | all proven | not applicable | open mandatory | open |"
    yield "|---|---|---|---|---|---|"
    total: list[Statement] = []
    for area, title in AREAS_NOW.items():
        statements = coverage.of_area(area)
        total += statements
        yield _summary_row(coverage, f"[{title}](#{title.lower().replace(' ', '-')})", statements)
    yield _summary_row(coverage, "**sum**", total)
    yield ""
    yield "`n / m` is n of the m statements that apply."
    yield ""
    yield "Later, with the part that they are about:"
    yield ""
    yield "| area | mandatory | all | proven already |"
    yield "|---|---|---|---|"
    for area, title in AREAS_LATER.items():
        statements = coverage.of_area(area)
        mandatory = sum(statement.is_mandatory for statement in statements)
        proven = sum(coverage.is_proven(statement) for statement in statements)
        yield f"| {title} | {mandatory} | {len(statements)} | {proven} |"


def _summary_row(coverage: Coverage, title: str, statements: list[Statement]) -> str:
    def ratio(of: list[Statement]) -> str:
        applying = [statement for statement in of if statement.id not in coverage.not_applicable]
        return f"{sum(map(coverage.is_proven, applying))} / {len(applying)}"

    mandatory = [statement for statement in statements if statement.is_mandatory]
    not_applicable = sum(statement.id in coverage.not_applicable for statement in statements)
    open_mandatory, open_all = sum(map(coverage.is_open, mandatory)), sum(map(coverage.is_open, statements))
    return f"| {title} | {ratio(mandatory)} | {ratio(statements)} | {not_applicable} | {open_mandatory} | {open_all} |"


def _render_areas(coverage: Coverage) -> Iterator[str]:
    for area, title in AREAS_NOW.items():
        yield ""
        yield f"## {title}"
        section = ""
        for statement in coverage.of_area(area):
            if statement.section != section:
                section = statement.section
                yield ""
                yield f"{section.split(' / ')[-1]}:"
                yield ""
                yield "| id | keyword | specification | proven by |"
                yield "|---|---|---|---|"
            place = f"{statement.file}:{statement.line}"
            yield f"| {statement.id} | {statement.keyword} | {place} | {_verdict(coverage, statement)} |"


def _verdict(coverage: Coverage, statement: Statement) -> str:
    if statement.id in coverage.not_applicable:
        return "not applicable: " + coverage.not_applicable[statement.id].replace("|", "\\|")
    tests = coverage.proofs.get(statement.id, [])
    return "<br>".join(f"[{test.name}](../{test.path})" for test in tests) or "**open**"


def problems_of_areas(statements: Mapping[str, Statement]) -> list[str]:
    """An area that the page does not know would silently be left out of it."""
    counts = Counter(statement.area for statement in statements.values())
    unknown = counts.keys() - AREAS_NOW.keys() - AREAS_LATER.keys()
    return [f"{STATEMENTS}: area {area!r} has no title in {Path(__file__).name}" for area in sorted(unknown)]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when the page is out of date")
    check: bool = parser.parse_args(arguments).check
    coverage = collect()
    problems = coverage.problems + problems_of_areas(coverage.statements)
    if problems:
        print(*problems, sep="\n", file=sys.stderr)
        return 2
    page = render(coverage)
    if check:
        if (ROOT / PAGE).is_file() and (ROOT / PAGE).read_text() == page:
            return 0
        print(f"{PAGE} is out of date: run tools/spec_coverage.py", file=sys.stderr)
        return 1
    (ROOT / PAGE).write_text(page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
