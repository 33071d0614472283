"""The table of docs/faults.md, from the figures that `make faults` has measured.

    python tests/faults/table.py FIGURES [--write docs/faults.md]

Prints it, puts it between the marks of the page, and returns 1 where something does not hold.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import platform
import sys
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
HEADER = ("row", "fault", "measured", "limit", "found", "holds")


def faults() -> dict[str, str]:
    """Row -> the fault, the shortest first line of the docstrings of the row's files."""
    found: dict[str, str] = {}
    for path in sorted(Path(__file__).parent.glob("test_r[0-9][0-9]_*.py")):
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        row, _, fault = text.partition("\n")[0].partition(": ")
        fault = fault.rstrip(".")
        found[row] = min(found.get(row, fault), fault, key=len)
    return found


def worst(figures: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """What -> the figure that is nearest to its limit, or furthest beyond it."""
    found: dict[str, dict[str, Any]] = {}
    for one in figures:
        sign = -1 if one["at_least"] else 1
        known = found.get(one["what"])
        if known is None or sign * one["measured"] > sign * known["measured"]:
            found[one["what"]] = one
    return found


def shown(value: float, unit: str) -> str:
    """At most three digits that count, and the unit."""
    digits = f"{value:,.0f}" if value == int(value) or abs(value) >= 100 else f"{value:.3g}"
    return f"{digits} {unit}".strip()


def rows_of(lines: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """The rows of the table, as text."""
    made = []
    for row, fault in sorted(faults().items(), key=lambda item: int(item[0][1:])):
        own = [line for line in lines if line["row"] == row]
        outcomes = Counter(line["outcome"] for line in own if line["kind"] == "test")
        told = ", ".join(f"{count} {outcome}" for outcome, count in sorted(outcomes.items()))
        holds = "yes" if outcomes["passed"] and not outcomes["failed"] else "no"
        made.append((row, fault, "tests", "all pass", told or "not run", holds))
        for what, one in worst([line for line in own if line["kind"] == "figure"]).items():
            limit = f"{'≥' if one['at_least'] else '≤'} {shown(one['limit'], one['unit'])}"
            found = shown(one["measured"], one["unit"])
            made.append(("", "", what, limit, found, "yes" if one["passed"] else "no"))
    return made


def markdown(rows: list[tuple[str, ...]]) -> str:
    """A table with columns that line up."""
    widths = [max(len(row[i]) for row in (HEADER, *rows)) for i in range(len(HEADER))]
    lines = [HEADER, tuple("-" * width for width in widths), *rows]
    return "\n".join(
        "| "
        + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        + " |"
        for line in lines
    )


def main() -> int:
    """Print the table; 1 if a row does not hold."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("figures", type=Path)
    parser.add_argument("--write", type=Path, help="the page whose table is replaced")
    options = parser.parse_args()
    text = options.figures.read_text(encoding="utf-8") if options.figures.exists() else ""
    rows = rows_of([json.loads(line) for line in text.splitlines()])
    table = markdown(rows)
    print(table)
    if options.write is not None:
        today = datetime.now(UTC).date().isoformat()
        where = f"Measured on {today}: {os.cpu_count()} processors ({platform.machine()}), Python "
        where += f"{platform.python_version()}, {platform.system()}."
        page = options.write.read_text(encoding="utf-8")
        before, after = page.split(BEGIN)[0], page.split(END)[1]
        page = f"{before}{BEGIN}\n{where}\n\n{table}\n{END}{after}"
        options.write.write_text(page, encoding="utf-8")
    return int(any(row[-1] == "no" for row in rows))


if __name__ == "__main__":
    sys.exit(main())
