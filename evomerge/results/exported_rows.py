"""Candidates as rows for other programs: what front.json, front.csv and `evomerge front` share."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from evomerge.pareto import knee
from evomerge.results.account import Account, ObjectiveFacts

Json = dict[str, Any]

PARTS = ("holdout", "fresh", "search", "told")  # of the items; told: the search's own estimates


def knee_of(front: Sequence[Mapping[str, Any]]) -> int | None:
    """The candidate where the front bulges most; None where there is no front of two objectives.

    It is a choice, so it is made on the fresh items, as all choices are: the holdout only reports.
    """
    if not front or len(front[0]["holdout"]) < 2:
        return None
    part = "fresh" if all("fresh" in row for row in front) else "holdout"
    values = np.array([[e["value"] for e in row[part].values()] for row in front])
    return int(front[knee(values)]["candidate"])


def exported_row(
    row: Mapping[str, Any],
    fingerprint: str,
    objectives: Sequence[ObjectiveFacts],
    final: Mapping[str, Any] | None,
) -> Json:
    """A candidate, with all values in the user's own units: what is to be small is not negated.

    row: of the final table, or one like it. The mean is of the measured objectives, each turned so
    that more is better.
    """
    signs = {objective.name: objective for objective in objectives}
    front = final["front"] if final else []
    values: Json = {}
    for part in PARTS:
        for name, estimate in row.get(part, {}).items():
            shown = {**estimate, "value": signs[name].shown(estimate["value"]) + 0.0}  # no -0.0
            values.setdefault(name, {})[part] = shown
    means = {part: dict(row[f"{part}_mean"]) for part in PARTS if f"{part}_mean" in row}
    return {
        "candidate": row["candidate"],
        "label": row["label"],
        "folder": None,
        "best": final is not None and final["best"]["candidate"] == row["candidate"],
        "knee": knee_of(front) == row["candidate"],
        "front": any(other["candidate"] == row["candidate"] for other in front),
        "objectives": values,
        "mean_of_objectives": means,
        **({"failed_items": row["failed_items"]} if "failed_items" in row else {}),
        "fingerprint": fingerprint,
    }


def front_rows(account: Account) -> list[Json]:
    """The front, as `exported_row` makes it; of a run with one objective the best alone."""
    final = account.final or {"front": [], "best": None}
    rows = final["front"] or [row for row in (final["best"],) if row is not None]
    fingerprint = account.ledger.candidates.fingerprint
    return [
        exported_row(row, fingerprint(row["candidate"]), account.objectives, account.final)
        for row in rows
    ]


def rows_csv(rows: Sequence[Mapping[str, Any]], objectives: Sequence[ObjectiveFacts]) -> str:
    """The rows as CSV with a header; what is not known is empty (docs/export.md says each column).

    Of each objective NAME: NAME is its value on the holdout, and NAME_standard_error, NAME_items;
    NAME_fresh, NAME_search and NAME_told with standard errors are estimates.
    """
    lines = [_cells(row, objectives) for row in rows]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    if lines:
        writer.writerow([name for name, _ in lines[0]])
    writer.writerows([[value for _, value in line] for line in lines])
    return text.getvalue()


def _cells(row: Mapping[str, Any], objectives: Sequence[ObjectiveFacts]) -> list[tuple[str, Any]]:
    cells = [(key, row[key]) for key in ("candidate", "label", "folder", "best", "knee", "front")]
    known = {o.name: row["objectives"].get(o.name, {}) for o in objectives}
    for name, parts in (*known.items(), ("mean_of_objectives", row["mean_of_objectives"])):
        for part in PARTS:
            estimate, column = parts.get(part, {}), name if part == "holdout" else f"{name}_{part}"
            cells.append((column, estimate.get("value")))
            if name in known or part != "told":
                cells.append((f"{column}_standard_error", estimate.get("standard_error")))
            if name in known and part == "holdout":
                cells.append((f"{column}_items", estimate.get("num_items")))
    return [*cells, ("fingerprint", row["fingerprint"])]
