"""Whether a difference is more than chance: over items, over seeds, and over several pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import hypot

import numpy as np
from numpy.typing import NDArray

from evomerge.results.intervals import paired_draws
from evomerge.results.sweep import over_seeds
from evomerge.stopping import CONFIDENCE

LEVEL = 0.05
SEED = 0  # of the bootstrap

BY_ITEM = "paired bootstrap over the holdout's items"
BY_ERROR = "unpaired, by standard errors"
BY_SEED = "paired by seed, Student's t"
BY_RUN = "unpaired over runs, Welch's t"
ALIKE = "the same model"
NONE = "not tested"


@dataclass(frozen=True)
class Gap:
    """First minus second, with a 95 % interval and a two-sided p-value, where there are such.

    method: how it was found. count: of the items, seeds or runs that it rests on.
    """

    value: float
    low: float | None
    high: float | None
    p: float | None
    method: str
    count: int


def over_items(
    ours: Mapping[str, NDArray[np.float64]], theirs: Mapping[str, NDArray[np.float64]]
) -> Gap:
    """Two models on the same items.

    The p-value is the level at which the percentile interval would just reach 0, so that both
    always say the same (Efron & Tibshirani 1993, ch. 13 and 16).

    ours, theirs: task -> what each item adds, shape (items,).
    """
    value, draws = paired_draws(ours, theirs, SEED)
    low, high = np.quantile(draws, [0.025, 0.975])
    tail = min(np.count_nonzero(draws <= 0), np.count_nonzero(draws >= 0))
    p = min(1.0, 2 * (tail + 1) / (len(draws) + 1))
    count = sum(len(items) for items in ours.values())
    return Gap(value, float(low), float(high), p, BY_ITEM, count)


def by_errors(one: tuple[float, float], other: tuple[float, float], num_items: int) -> Gap:
    """Two models on different items: (value, standard error) of each."""
    from scipy.stats import norm

    value, error = one[0] - other[0], hypot(one[1], other[1])
    if error == 0:  # each is one number, and says nothing of chance
        return Gap(value, None, None, None, NONE, num_items)
    half = CONFIDENCE * error
    p = float(2 * norm.sf(abs(value) / error))
    return Gap(value, value - half, value + half, p, BY_ERROR, num_items)


def over_runs(ours: Mapping[str, Sequence[float]], theirs: Mapping[str, Sequence[float]]) -> Gap:
    """Two groups of runs: paired where two or more of their keys are in both, once each.

    ours, theirs: what makes a pair, such as the seed -> the values of the runs that have it.
    """
    shared = sorted(ours.keys() & theirs.keys())
    once = all(len(values[key]) == 1 for values in (ours, theirs) for key in shared)
    if len(shared) > 1 and once:
        return _paired([ours[key][0] - theirs[key][0] for key in shared])
    first, second = ([v for of in values.values() for v in of] for values in (ours, theirs))
    value = float(np.mean(first) - np.mean(second))
    count = len(first) + len(second)
    if min(len(first), len(second)) < 2 or np.ptp(first) + np.ptp(second) < 1e-12:
        return Gap(value, None, None, None, NONE, count)
    return _welch(np.array(first), np.array(second))


def _welch(first: NDArray[np.float64], second: NDArray[np.float64]) -> Gap:
    """Welch, The Generalization of "Student's" Problem, Biometrika 34 (1947).

    Not scipy's, which warns where all runs of a group are alike, as they often are.
    """
    from scipy.stats import t

    parts = np.array([values.var(ddof=1) / len(values) for values in (first, second)])
    freedom = np.array([len(first) - 1, len(second) - 1])
    error = float(parts.sum()) ** 0.5
    degrees = float(parts.sum() ** 2 / (parts**2 / freedom).sum())
    value = float(first.mean() - second.mean())
    half = float(t.ppf(0.975, degrees)) * error
    p = float(2 * t.sf(abs(value) / error, degrees))
    return Gap(value, value - half, value + half, p, BY_RUN, len(first) + len(second))


def _paired(gaps: Sequence[float]) -> Gap:
    found, count = over_seeds(gaps), len(gaps)
    if found is None:
        raise ValueError("no gaps")
    mean, error = found["mean"], found["standard_error"]
    if np.ptp(gaps) < 1e-12:  # on a coarse scale: as sure as signs can be, and no surer
        p = 1.0 if abs(mean) < 1e-12 else 2 / 2**count
        return Gap(mean, mean, mean, p, BY_SEED, count)
    from scipy.stats import t

    p = float(2 * t.sf(abs(mean) / error, count - 1))
    return Gap(mean, found["low"], found["high"], p, BY_SEED, count)


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values that hold for all pairs together, in the order given.

    Holm, A Simple Sequentially Rejective Multiple Test Procedure, Scandinavian Journal of
    Statistics 6 (1979).
    """
    order = np.argsort(p_values, kind="stable")
    adjusted = np.empty(len(p_values))
    largest = 0.0
    for rank, place in enumerate(order):
        largest = max(largest, (len(order) - rank) * p_values[place])
        adjusted[place] = min(1.0, largest)
    return [float(p) for p in adjusted]
