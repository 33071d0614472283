"""What cards say of scores: a candidate's own, beside the references, and for the hub."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evomerge.results.account import ObjectiveFacts
from evomerge.results.exported_rows import Json
from evomerge.results.markdown import block, code, one_line, plain, table
from evomerge.wording import in_short

HEADS = {"told": "estimate of the search", "search": "search items"}


@dataclass(frozen=True)
class Found:
    """What a search knows of the candidate that a card is of; values in the user's own units.

    Attributes:
        row: as `exported_row` makes it.
        objectives: in their declared order.
        references: label -> row, likewise.
        gain: over the best reference, with a paired interval; None where nobody knows.
        search: what is told of the search: name, seed, digest, versions, ... and `experiment`.
        pictures: file name -> what it shows; they lie beside the card.
    """

    row: Mapping[str, Any]
    objectives: Sequence[ObjectiveFacts]
    references: Mapping[str, Mapping[str, Any]]
    gain: Mapping[str, Any] | None
    search: Mapping[str, Any]
    pictures: Mapping[str, str]


def scores_section(found: Found | None) -> str:
    """The candidate's scores: what steered the search, what chose, and what only reports."""
    if found is None:
        return ""
    values = found.row["objectives"]
    shown = [
        part
        for part in ("told", "search", "fresh", "holdout")
        if any(part in values.get(o.name, {}) for o in found.objectives)
    ]
    if "told" in shown and "search" in shown and all(_same(values[name]) for name in values):
        shown.remove("told")
    heads = ["objective", *(HEADS.get(part, part) for part in shown)]
    rows = [
        [_objective(o), *(_cell(values.get(o.name, {}).get(part)) for part in shown)]
        for o in found.objectives
    ]
    lines = ["", "## Scores", "", table(heads, rows), "", _what_they_are(shown)]
    if failed := found.row.get("failed_items"):
        told = ", ".join(f"{count} of {code(task)}" for task, count in failed.items())
        lines += ["", f"Items that it could not answer, which count as the worst: {told}."]
    return "\n".join([*lines, *_beside(found), *_pictures(found), ""])


def _same(parts: Mapping[str, Any]) -> bool:
    """Whether the search's estimate is the mean of all search items: their errors may differ."""
    told, search = parts.get("told"), parts.get("search") or {}
    keys = ("value", "num_items")
    return told is None or all(told.get(key) == search.get(key) for key in keys)


def _what_they_are(shown: Sequence[str]) -> str:
    text = "Mean ± standard error, from so many items. The search has optimised what it saw, so "
    seen = [HEADS[part] for part in ("told", "search") if part in shown]
    text += f"its own column ({', '.join(seen)}) is an estimate that flatters. " if seen else ""
    if "fresh" in shown:
        text += "Finalists were compared on the fresh items, which the search never saw. "
    if "holdout" in shown:
        return text + "The holdout was asked at the end and has decided nothing: it is unbiased."
    return text + "It was not asked for the holdout: **there is no unbiased number of this model.**"


def _beside(found: Found) -> list[str]:
    """The references on the holdout, and the gain."""
    mine = found.row
    if not found.references or not any("holdout" in p for p in mine["objectives"].values()):
        return []
    rows = [["**this model**", *holdout_cells(mine, found.objectives)]]
    rows += [
        [plain(label), *holdout_cells(row, found.objectives)]
        for label, row in found.references.items()
    ]
    lines = ["", "## Beside the references", "", "All on the holdout.", ""]
    lines.append(table(["model", *holdout_heads(found.objectives)], rows))
    if (gain := found.gain) is not None:
        lines += ["", gain_sentence(gain, found.objectives)]
    return lines


def gain_sentence(gain: Mapping[str, Any], objectives: Sequence[ObjectiveFacts]) -> str:
    """The gain in words."""
    what = " on the mean of the objectives" if _num_measured(objectives) > 1 else ""
    text = (
        f"Gain over the best reference ({plain(gain['reference'])}){what}: {gain['value']:+.3f}, "
        f"95 % paired bootstrap interval [{gain['low']:+.3f}, {gain['high']:+.3f}]."
    )
    if gain["high"] < 0:
        return text + " **It is worse than that reference.**"
    if gain["low"] <= 0:
        return text + " The interval contains 0: on these items the two cannot be told apart."
    return text


def holdout_heads(objectives: Sequence[ObjectiveFacts]) -> list[str]:
    """The columns of `holdout_cells`."""
    return [*map(_objective, objectives), *(["mean"] if _num_measured(objectives) > 1 else [])]


def holdout_cells(row: Mapping[str, Any], objectives: Sequence[ObjectiveFacts]) -> list[str]:
    """Each objective on the holdout, and their mean where there are several."""
    known = [row["objectives"].get(o.name, {}).get("holdout") for o in objectives]
    cells = [_cell(estimate, counts=False) for estimate in known]
    if _num_measured(objectives) > 1:
        cells.append(_cell(row["mean_of_objectives"].get("holdout"), counts=False))
    return cells


def _num_measured(objectives: Sequence[ObjectiveFacts]) -> int:
    return sum(o.cost is None for o in objectives)


def _objective(objective: ObjectiveFacts) -> str:
    return plain(objective.name) + (" (less is better)" if objective.sign < 0 else "")


def _cell(estimate: Mapping[str, float] | None, *, counts: bool = True) -> str:
    if estimate is None:
        return "-"
    if estimate.get("num_items") == 0:
        return in_short(estimate["value"])  # a cost, which is known exactly
    error = estimate.get("standard_error")
    text = f"{estimate['value']:.3f}" + (f" ± {error:.3f}" if error is not None else "")
    return f"{text} ({estimate['num_items']} items)" if counts else text


def _pictures(found: Found) -> list[str]:
    lines = []
    for name, what in found.pictures.items():
        lines += ["", f"![{what}]({name})"]
    return lines


def search_section(found: Found | None) -> str:
    """How to make the search again, and what it was made with."""
    if found is None:
        return ""
    told = found.search
    rows = [[key, code(told[key])] for key in told if key not in ("experiment", "versions")]
    rows += [[plain(package), code(version)] for package, version in told["versions"].items()]
    return f"""## The search

{table(["what", "value"], rows, numbers=False)}

`evomerge run experiment.yaml --out FOLDER` makes the search again, where experiment.yaml is what
stands below; `evomerge digest FOLDER` then gives the digest above, on the same kind of processor
with the same versions.

{block(told["experiment"], "yaml")}"""


def model_index(found: Found | None, name: str) -> list[Json]:
    """The scores on the holdout as the hub reads them; costs are no results."""
    results = []
    for objective in found.objectives if found is not None else ():
        estimate = (found.row["objectives"] if found else {}).get(objective.name, {}).get("holdout")
        if estimate is None or objective.cost is not None:
            continue
        shown = one_line(objective.name)
        items = f"holdout, {estimate['num_items']} items"
        metric = {
            "type": "score",
            "name": f"{shown} ({items}; standard error {estimate['standard_error']:.3g})",
            "value": round(estimate["value"], 6),
        }
        results.append(
            {
                "task": {"type": "text-generation"},
                "dataset": {"type": "evomerge", "name": f"{shown} ({items})"},
                "metrics": [metric],
            }
        )
    return [{"name": name, "results": results}] if results else []
