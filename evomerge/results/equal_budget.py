"""Searches at equal budgets: best-so-far scores and hypervolumes on one grid."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from evomerge.results.account import share_dominated
from evomerge.results.contender import Contender
from evomerge.results.sweep import over_seeds

Row = list[float | None]
Box = tuple[NDArray[np.float64], NDArray[np.float64]]  # the worst and the best values

POINTS = 101  # of the grid that curves are told on


def grid(runs: Sequence[Contender]) -> NDArray[np.int64]:
    """Item evaluations, references included, up to where the run with the fewest ended."""
    begun = [run.steps for run in runs if run.steps]
    if not begun:
        return np.empty(0, np.int64)
    first = min(steps[0].item_evaluations for steps in begun)
    last = min(steps[-1].item_evaluations for steps in begun)
    return np.unique(np.linspace(min(first, last), last, POINTS).round().astype(np.int64))


def box(runs: Sequence[Contender]) -> Box | None:
    """From the worst to the best value of each objective, in any front and any reference."""
    points = [step.front for run in runs for step in run.steps]
    points += [run.references for run in runs]
    every = np.vstack(points) if points else np.empty((0, 0))
    return (every.min(axis=0), every.max(axis=0)) if every.size else None


def curve(
    run: Contender,
    grid: NDArray[np.int64],
    box: Box | None,
) -> dict[str, Row]:
    """The incumbent's search score and the front's hypervolume, at each point of the grid.

    What holds at a point is what the last step up to it had found; None before there was any.
    """
    ends = np.array([step.item_evaluations for step in run.steps], dtype=np.int64)
    places = np.searchsorted(ends, grid, side="right") - 1
    found: dict[str, Row] = {"value": [], "low": [], "high": [], "hypervolume": []}
    areas: dict[int, float] = {}
    for place in places.tolist():
        step = run.steps[place] if place >= 0 else None
        mean = step.incumbent["mean"] if step and step.incumbent else None
        shown = run.interval(mean["value"], mean["standard_error"]) if mean else {}
        for key in ("value", "low", "high"):
            found[key].append(shown.get(key))
        if step is None or box is None:
            found["hypervolume"].append(None)
            continue
        if place not in areas:
            areas[place] = share_dominated(step.front, *box)
        found["hypervolume"].append(areas[place])
    return found


def mean_curve(rows: Sequence[Row]) -> dict[str, Row]:
    """Mean and 95 % interval over runs, where all of them have a value."""
    curve: dict[str, Row] = {"value": [], "low": [], "high": []}
    for column in zip(*rows, strict=True):
        values = [value for value in column if value is not None]
        found = over_seeds(values) if len(values) == len(column) else None
        curve["value"].append(found["mean"] if found else None)
        curve["low"].append(found["low"] if found else None)
        curve["high"].append(found["high"] if found else None)
    return curve
