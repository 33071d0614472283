"""Dominance, hypervolume and the knee of a front. Everything is maximised."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from evomerge.records import Evaluation

BLOCK = 128  # points that are compared with all others at once


def non_dominated(values: ArrayLike) -> NDArray[np.bool_]:
    """Which points no other point dominates: none is as good everywhere and better somewhere.

    values: shape (points, objectives). Equal points are kept all; a point with a NaN never is, and
    dominates nobody. Shape of the result: (points,).
    """
    points = _points(values)
    kept: NDArray[np.bool_] = ~np.any(np.isnan(points), axis=1)
    if points.shape[1] == 2:
        kept[kept] = _highest_yet(points[kept])
        return kept
    # First those that are likely to dominate many others; infinities may make no sum.
    with np.errstate(invalid="ignore"):
        order = np.argsort(-points.sum(axis=1), kind="stable")
    points, kept, start = points[order], kept[order], 0
    while len(block := start + np.flatnonzero(kept[start:])[:BLOCK]):
        # Whoever one of the block dominates is out. They need not be compared with the others
        # first: what dominates them dominates those as well.
        as_good = np.ones((len(block), len(points)), dtype=bool)
        better = np.zeros_like(as_good)
        for column in points.T:
            as_good &= column[block, None] >= column
            better |= column[block, None] > column
        kept &= ~(as_good & better).any(axis=0)
        start = int(block[-1]) + 1
    found = np.empty_like(kept)
    found[order] = kept
    return found


def _highest_yet(points: NDArray[np.float64]) -> NDArray[np.bool_]:
    """The same for two objectives, by sorting: whoever is higher than all to the right of it."""
    kept = np.zeros(len(points), dtype=bool)
    if len(points) == 0:
        return kept
    order = np.lexsort((-points[:, 1], -points[:, 0]))
    right, height = points[order].T
    first = np.r_[True, right[1:] != right[:-1]]  # of those that are equally far to the right
    group = np.cumsum(first) - 1
    highest = height[first]
    beyond = np.r_[-np.inf, np.maximum.accumulate(highest)[:-1]]
    # Where nobody is further to the right, even the lowest number is not exceeded.
    is_new = (highest > beyond) | (np.arange(len(highest)) == 0)
    kept[order] = is_new[group] & (height == highest[group])
    return kept


def hypervolume(values: ArrayLike, reference: ArrayLike) -> float:
    """The volume that is dominated by the points and dominates the reference; exact.

    values: shape (points, objectives); reference: shape (objectives,). Points that are not better
    than the reference in every objective, and points with a NaN, add nothing. Zitzler & Thiele,
    Multiobjective Evolutionary Algorithms: A Comparative Case Study and the Strength Pareto
    Approach, IEEE Transactions on Evolutionary Computation 3 (1999).
    """
    points = _points(values)
    corner = np.asarray(reference, dtype=np.float64)
    if corner.shape != (points.shape[1],):
        raise ValueError(f"reference: expected shape ({points.shape[1]},), got {corner.shape}")
    points = points[(points > corner).all(axis=1)]
    if len(points) == 0:
        return 0.0
    from pymoo.indicators.hv import HV

    return float(HV(ref_point=-corner)(-points))


def knee(values: ArrayLike) -> int:
    """The index of the point where the front bulges most.

    That is the largest distance, towards the better side, from the hyperplane through the best
    points of each objective, after every objective of the front was scaled to [0, 1]. Das, On
    Characterizing the "Knee" of the Pareto Curve Based on Normal-Boundary Intersection, Structural
    Optimization 18 (1999). Where the extremes span no hyperplane, the one through the unit points
    is taken; ties go to the lowest index.

    values: shape (points, objectives).

    Raises:
        ValueError: there is no point without a NaN.
    """
    points = _points(values)
    indices = np.flatnonzero(non_dominated(points))
    if len(indices) == 0:
        raise ValueError("knee: expected at least one point without a NaN")
    front = points[indices]
    spread = np.ptp(front, axis=0)
    varied = spread > 0
    if not varied.any():
        return int(indices[0])
    scaled = (front[:, varied] - front[:, varied].min(axis=0)) / spread[varied]
    normal = _normal(scaled[scaled.argmax(axis=0)])
    distance = scaled @ normal / np.linalg.norm(normal)
    return int(indices[int(np.argmax(np.round(distance, 12)))])


def _normal(extremes: NDArray[np.float64]) -> NDArray[np.float64]:
    """The w of the hyperplane w x = 1 through the rows, if it faces the better side."""
    ones = np.ones(len(extremes))
    if np.linalg.matrix_rank(extremes) < len(extremes):
        return ones
    normal = np.linalg.solve(extremes, ones)
    return np.where((normal > 0).all(), normal, ones)


def _points(values: ArrayLike) -> NDArray[np.float64]:
    """The values as float64, shape (points, objectives)."""
    points = np.asarray(values, dtype=np.float64)
    if points.ndim != 2:
        raise ValueError(f"values: expected shape (points, objectives), got {points.shape}")
    return points


def front_ranks(values: ArrayLike, enough: int | None = None) -> NDArray[np.int64]:
    """The front that each point is on: 0 for the non-dominated, 1 once those are gone, and so on.

    values: shape (points, objectives). Points with a NaN come after all fronts, and so do those
    that are left when `enough` are on one. Deb et al., A Fast and Elitist Multiobjective Genetic
    Algorithm: NSGA-II, IEEE TEC 6 (2002), section III.A.
    """
    points = _points(values)
    ranks = np.full(len(points), len(points), dtype=np.int64)
    left = np.flatnonzero(~np.isnan(points).any(axis=1))
    num_left = 0 if enough is None else max(len(points) - enough, 0)
    for rank in range(len(points)):
        if len(left) <= num_left:
            break
        best = non_dominated(points[left])
        ranks[left[best]] = rank
        left = left[~best]
    return ranks


def best_first(evaluations: Sequence[Evaluation]) -> list[Evaluation]:
    """By rung, then by Pareto front, then by the mean of the measured objectives, then by id."""
    scored = [(e, e.score) for e in evaluations if e.score is not None]
    if not scored:
        return []
    values = np.array([score.values for _, score in scored])
    rungs = np.array([score.rung for _, score in scored])
    ranks = np.zeros(len(scored), dtype=np.int64)
    for rung in np.unique(rungs):
        ranks[rungs == rung] = front_ranks(values[rungs == rung])
    ids = np.array([e.id for e, _ in scored])
    means = np.array([score.mean for _, score in scored])
    order = np.lexsort((ids, -means, ranks, -rungs))
    return [scored[i][0] for i in order]


def best(evaluations: Sequence[Evaluation]) -> Evaluation | None:
    """The first of `best_first`, found without ranking the rest; None if nobody has a score.

    Whoever has the largest mean is dominated by nobody, or by one that has it too and costs less.
    """
    scored = [((-e.score.rung, -e.score.mean), e) for e in evaluations if e.score]
    top = min((key for key, _ in scored), default=None)
    tied = [evaluation for key, evaluation in scored if key == top]
    return best_first(tied)[0] if tied else None
