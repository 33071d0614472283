"""Which of two groups of runs is better, and whether that can be told: numbers and words."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from itertools import combinations
from typing import Any

from evomerge.results.contender import Contender, Group
from evomerge.results.significance import (
    ALIKE,
    LEVEL,
    NONE,
    Gap,
    by_errors,
    holm,
    over_items,
    over_runs,
)

Json = dict[str, Any]

FIRST, SECOND, UNTOLD, UNTESTED = "first", "second", "not told apart", "not tested"


def score_pairs(groups: Sequence[Group], by: str | None) -> list[Json]:
    """Every two groups by what their chosen models score on the holdout."""
    ready = [group for group in groups if group.finished]
    gaps = [(a, b, _score_gap(a, b, by)) for a, b in combinations(ready, 2)]
    return _judged(gaps, groups[0].runs[0].sign)


def hypervolume_pairs(
    groups: Sequence[Group], by: str | None, held: Mapping[int, float | None]
) -> list[Json]:
    """The same by the hypervolume on the holdout, which has an error over several runs alone.

    held: by the id of the run's object.
    """
    ready = [g for g in groups if any(held[id(run)] is not None for run in g.finished)]
    gaps = [
        (a, b, over_runs(*(_values(g, by, lambda run: held[id(run)]) for g in (a, b))))
        for a, b in combinations(ready, 2)
    ]
    return _judged(gaps, 1)


def _values(
    group: Group, by: str | None, value_of: Callable[[Contender], float | None]
) -> dict[str, list[float]]:
    """What makes a pair -> the values of the runs that have it."""
    found: dict[str, list[float]] = {}
    for run in group.finished:
        if (value := value_of(run)) is not None:
            found.setdefault(run.beside(by), []).append(value)
    return found


def _held_out(run: Contender) -> float | None:
    return run.held_out["value"] if run.held_out else None


def _score_gap(first: Group, second: Group, by: str | None) -> Gap:
    if len(first.finished) == len(second.finished) == 1:
        return _gap_of_two(first.finished[0], second.finished[0])
    return over_runs(_values(first, by, _held_out), _values(second, by, _held_out))


def _gap_of_two(one: Contender, other: Contender) -> Gap:
    """Of two single runs: item by item where both held out the same."""
    if one.held_out is None or other.held_out is None:
        raise ValueError("a run is not finished")
    ends = [
        (run.held_out["value"], run.held_out["standard_error"])
        for run in (one, other)
        if run.held_out
    ]
    holdout = one.holdout or {}
    num_items = sum(len(ids) for ids in holdout.values())
    same_items = bool(holdout) and one.holdout == other.holdout
    if same_items and one.fingerprint == other.fingerprint and one.models == other.models:
        return Gap(0.0, 0.0, 0.0, 1.0, ALIKE, num_items)
    is_by_item = one.shares is not None and other.shares is not None
    if same_items and is_by_item and num_items > len(holdout):
        ours, theirs = (
            {task: run.sign * share for task, share in (run.shares or {}).items()}
            for run in (one, other)
        )
        return over_items(ours, theirs)
    return by_errors(ends[0], ends[1], num_items)


def _judged(gaps: Sequence[tuple[Group, Group, Gap]], sign: int) -> list[Json]:
    """Gaps as JSON, with p-values for all pairs together, and what can be told.

    sign: -1 where less is better.
    """
    tested = [gap.p for _, _, gap in gaps if gap.p is not None]
    adjusted = iter(holm(tested))
    rows = []
    for first, second, gap in gaps:
        p = next(adjusted) if gap.p is not None else None
        verdict = _verdict(gap, p, sign)
        row: Json = {"first": first.name, "second": second.name, **asdict(gap)}
        row |= {"p_holm": p, "better": verdict}
        rows.append({**row, "words": _words(row, len(tested))})
    return rows


def _verdict(gap: Gap, p: float | None, sign: int) -> str:
    if p is None:
        return UNTESTED
    if p >= LEVEL:
        return UNTOLD
    return FIRST if sign * gap.value > 0 else SECOND


def _words(row: Mapping[str, Any], num_tested: int) -> str:
    first, second, value = row["first"], row["second"], row["value"]
    if row["method"] == ALIKE:
        return f"{first} and {second} chose the same model."
    if row["better"] == UNTESTED:
        why = "chance cannot be told" if row["method"] == NONE else row["method"]
        return f"{first} less {second}: {value:+.3f}; {why} from so few runs or items."
    low, high = row["low"], row["high"]
    if row["better"] == UNTOLD:
        said = f"{first} and {second} cannot be told apart: the first less the second is "
        said += f"{value:+.3f} [{low:+.3f}, {high:+.3f}]"
        if row["p"] < LEVEL:
            said += f"; as the one pair they could, but {num_tested} pairs are tested"
        return f"{said}."
    winner, loser = (first, second) if row["better"] == FIRST else (second, first)
    ends = sorted((abs(low), abs(high)))
    together = f" for all {num_tested} pairs" if num_tested > 1 else ""
    chance = f"p = {row['p_holm']:.2g}{together}"
    by = f"{abs(value):.3f} [{ends[0]:.3f}, {ends[1]:.3f}]"
    return f"{winner} is better than {loser} by {by}, {chance}."
