"""The store's measurements for people."""

from __future__ import annotations

from typing import Any

from xenvirtio.bench.store_bench import COMPARED

EXPLANATION = """\
us: from request to reply as the client waits for it. server: processor time of the server's process for it.
growth: the cost beside the most domains by the cost beside the fewest. Compare only figures of one run."""


def table_of(report: dict[str, Any]) -> str:
    """One line for each operation and server, a pair of columns for each number of domains."""
    rows = report["rows"]
    sizes = list(dict.fromkeys(row["domains"] for row in rows))
    found = {(row["operation"], row["server"], row["domains"]): row for row in rows}
    per_domain = report["watches_per_domain"]
    titles = [f"{size} dom, {size * per_domain} w" for size in sizes]
    lines = [" " * 40 + "".join(f"{title:>21}" for title in titles) + f"{'growth':>17}"]
    lines.append(" " * 40 + f"{'us':>12}{'server':>9}" * len(sizes) + f"{'us':>9}{'server':>8}")
    for growth in report["growth"]:
        operation, server = growth["operation"], growth["server"]
        cells = [found[operation, server, size] for size in sizes]
        line = f"{operation:<28}{server:<12}"
        line += "".join(f"{cell['us']:>12.1f}{_number(cell['server_us'], 9, 1)}" for cell in cells)
        lines.append(line + _number(growth["us"], 9) + _number(growth["server_us"], 8))
    if report["ratios"]:
        to = report["ratios"][0]["to"]
        lines += [
            "",
            f"{f'time by that of {to} (less than 1 is faster)':<54}{'us':>8}{'server':>8}{'fastest round':>18}",
        ]
    for ratio in report["ratios"]:
        line = f"{ratio['operation']:<28}{ratio['server']:<12}{ratio['domains']:>6} domains"
        lines.append(line + "".join(_number(ratio[key], 8) for key in COMPARED))
    return "\n".join([*lines, "", EXPLANATION])


def _number(value: float | None, width: int, digits: int = 2) -> str:
    return f"{value:>{width}.{digits}f}" if value is not None else f"{'?':>{width}}"
