"""How sure a difference is: paired bootstrap over items."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from evomerge.fitness.agreement import answers_of
from evomerge.fitness.estimators.estimate import Items
from evomerge.records import Measurements, Objective

DRAWS = 10_000


def mean_of_objectives(
    objectives: Sequence[Objective],
    measurements: Measurements,
    fingerprint: str,
    items: Items,
    near: Sequence[str] = (),
) -> dict[str, NDArray[np.float64]]:
    """What each item adds to the plain mean of the objectives: task -> shape (items,).

    Costs are left out: they have no items, and units of their own. The mean is the sum of the
    tasks' means. It is what a single number says of a model with several objectives; where two of
    them read the same items, their errors are not independent, and here they are summed item by
    item.

    near: fingerprints of the neighbours, for objectives of agreement.
    """
    shares: dict[str, NDArray[np.float64]] = {}
    measured = [objective for objective in objectives if objective.cost is None]
    for objective in measured:
        for task, weight in objective.weights.items():
            answers = answers_of(objective, measurements, fingerprint, task, items[task], near)
            share = objective.sign * weight / len(measured) * answers
            shares[task] = shares[task] + share if task in shares else share
    return shares


def mean_estimate(shares: Mapping[str, NDArray[np.float64]]) -> tuple[float, float]:
    """The sum of the tasks' means and its standard error; tasks are strata."""
    variance = sum(float(s.var(ddof=1)) / len(s) for s in shares.values() if len(s) > 1)
    return sum(float(s.mean()) for s in shares.values()), variance**0.5


def paired_gain(
    objectives: Sequence[Objective],
    measurements: Measurements,
    first: str,
    second: str,
    items: Items,
    seed: int,
    near: Mapping[str, Sequence[str]] | None = None,
) -> tuple[float, float, float]:
    """First minus second on the mean of the objectives: (value, low, high), 95 %.

    Percentile bootstrap, items drawn with replacement within each task, the same draw for both
    models (Efron & Tibshirani 1993, ch. 13; Koehn 2004 for paired test items).
    """
    ours, theirs = (
        mean_of_objectives(objectives, measurements, one, items, (near or {}).get(one, ()))
        for one in (first, second)
    )
    value, draws = paired_draws(ours, theirs, seed)
    low, high = np.quantile(draws, [0.025, 0.975])
    return value, float(low), float(high)


def paired_draws(
    ours: Mapping[str, NDArray[np.float64]], theirs: Mapping[str, NDArray[np.float64]], seed: int
) -> tuple[float, NDArray[np.float64]]:
    """The gap between two models, and DRAWS bootstrap samples of it, shape (DRAWS,).

    ours, theirs: what each item adds, of the same items in the same order (see
        `mean_of_objectives`).
    """
    draws = np.zeros(DRAWS)
    value = 0.0
    for task in ours:
        gap = ours[task] - theirs[task]
        value += float(gap.mean())
        draws += _resampled_means(gap, np.random.default_rng([seed, *task.encode()]))
    return value, draws


def _resampled_means(
    gap: NDArray[np.float64], generator: np.random.Generator
) -> NDArray[np.float64]:
    """Means of DRAWS bootstrap samples, shape (DRAWS,).

    Items with equal gaps are interchangeable, so counts of the distinct gaps are drawn: for right
    and wrong answers three numbers for each sample instead of one for each item.
    """
    distinct, counts = np.unique(gap, return_counts=True)
    drawn = generator.multinomial(len(gap), counts / len(gap), size=DRAWS)
    means: NDArray[np.float64] = drawn @ distinct / len(gap)
    return means
