"""An archive of elites by brute force, for tests: no grid, no memory of what was there before."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from evomerge.records import Evaluation
from evomerge.searchers.order import is_scored


def brute_archive(
    told: Mapping[int, Evaluation],
    quality: int | None,
    behaviour: Sequence[int],
    cells: int,
    ranges: Mapping[int, tuple[float, float]] | None = None,
) -> dict[tuple[int, ...], int]:
    """Cell -> id of who is in it; objectives are counted from 0, and no quality means their mean.

    told: the last evaluation of every candidate.
    """
    valid = [e for e in told.values() if e.score and is_scored(e) and e.violation <= 0]
    top = max((e.score.rung for e in valid if e.score), default=0)
    found: dict[tuple[int, ...], int] = {}
    rows = {e.id: e.score.values for e in valid if e.score and e.score.rung == top}

    def worth(candidate: int) -> float:
        values = rows[candidate]
        return sum(values) / len(values) if quality is None else values[quality]

    for candidate in sorted(rows):
        cell = []
        for axis in behaviour:
            column = [values[axis] for values in rows.values()]
            low, high = (ranges or {}).get(axis, (min(column), max(column)))
            share = (rows[candidate][axis] - low) / (high - low) if high > low else 0.0
            # Pyribs counts a border as passed 1e-6 before it.
            cell.append(min(max(math.floor(min(max(share, 0), 1) * cells + 1e-6), 0), cells - 1))
        key = tuple(cell)
        if key not in found or worth(candidate) > worth(found[key]) + 1e-12:
            found[key] = candidate
    return found
