"""Anchor points: items that stand for clusters of items, weighted by the clusters' sizes.

Vivek et al. 2023 (arXiv:2309.08638); tinyBenchmarks (Maia Polo et al. 2024, arXiv:2402.14992).
Clusters are of the references' response columns, or of item parameters where there are any. In
departure from both, counts are nested (what a shorter list has chosen are fixed centres of the
longer one) and weights are shares of the nearest *answered* item, so any set of items can be read.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from evomerge.fitness.estimators.column import (
    Cached,
    Floats,
    Positions,
    Side,
    check_counts,
    check_side,
)

Flags = NDArray[np.bool_]
LLOYD_STEPS = 10


class Anchors:
    """Weighted mean over anchor points.

    features: (items, dimensions) to cluster; the references' columns if None.

    The variance is a model's, not a sample's, for nobody drew the items at random: a model's
    answers within a cluster vary as the references' do within clusters found without them.
    """

    def __init__(
        self, side: Side, *, seed: int, num_items: int, features: Floats | None = None
    ) -> None:
        check_side(side, num_items)
        self._seed = seed
        self._references = side.references
        columns = side.references.T if features is None else features  # (N, dimensions)
        if columns.shape[1] == 0:  # no references: all items are alike
            columns = np.zeros((num_items, 1))
        self._points, point, sizes = np.unique(
            columns, axis=0, return_inverse=True, return_counts=True
        )
        self._point = point.reshape(-1)  # each item's distinct point
        self._sizes = sizes.astype(np.float64)
        self._own = features is None
        self._orders: dict[tuple[int, ...], list[Positions]] = {}
        self._weights = Cached(self._weigh)
        self._spread = Cached(self._spread_within)

    def order(self, counts: Sequence[int], rotation: int) -> Positions:
        """Anchors of the first count, then those that are added for the next, and so on."""
        check_counts(counts, len(self._point))
        made = self._orders.setdefault(tuple(counts), [])
        rotation %= max(len(self._point) // counts[-1], 1)  # after that, items would repeat
        while len(made) <= rotation:
            used = np.zeros(len(self._point), dtype=bool)
            for earlier in made:
                used[earlier] = True
            made.append(self._choose(counts, used, np.random.default_rng([self._seed, len(made)])))
        return made[rotation]

    def read(self, seen: Positions, answers: Floats) -> tuple[float, float]:
        """The weighted mean, which rounding does not take beyond the answers."""
        mean = np.clip(self._weights(seen) @ answers, answers.min(), answers.max())
        return float(mean), float(self._spread(seen)[0])

    def compare(self, seen: Positions, first: Floats, second: Floats) -> tuple[float, float]:
        """The weighted mean of the paired differences."""
        return float(self._weights(seen) @ (first - second)), float(self._spread(seen)[1])

    def _choose(
        self, counts: Sequence[int], used: Flags, generator: np.random.Generator
    ) -> Positions:
        chosen: list[int] = []
        free = ~used
        for count in counts:
            fixed = self._points[self._point[np.array(chosen, dtype=np.int64)]]
            centres = nested_kmeans(self._points, self._sizes, fixed, count, generator)
            for centre in centres[len(fixed) :]:
                distance = ((self._points - centre) ** 2).sum(axis=1)[self._point]
                distance[~free] = np.inf
                nearest = np.flatnonzero(distance == distance.min())
                chosen.append(int(generator.choice(nearest)))
                free[chosen[-1]] = False
            while len(chosen) < count:  # fewer kinds of items than anchors
                chosen.append(self._another(chosen, free, generator))
                free[chosen[-1]] = False
        return np.array(chosen, dtype=np.int64)

    def _another(self, chosen: list[int], free: Flags, generator: np.random.Generator) -> int:
        """An unused item of the kind that has the most items for each anchor."""
        counts = np.bincount(self._point[chosen], minlength=len(self._sizes))
        left = np.bincount(self._point[free], minlength=len(self._sizes)) > 0
        kind = np.where(left, self._sizes / (counts + 1), -1.0).argmax()
        return int(generator.choice(np.flatnonzero(free & (self._point == kind))))

    def _nearest(self, seen: Positions, points: Floats) -> Floats:
        """Each point's share in each answer (points, n): equal parts where several are nearest."""
        at = points[self._point[seen]]
        square = (points**2).sum(axis=1)[:, None] - 2 * points @ at.T + (at**2).sum(axis=1)
        near = square <= square.min(axis=1, keepdims=True) + 1e-9
        return np.asarray(near / near.sum(axis=1, keepdims=True))

    def _weigh(self, seen: Positions) -> Floats:
        share = self._nearest(seen, self._points)
        return np.asarray(self._sizes @ share / self._sizes.sum())

    def _spread_within(self, seen: Positions) -> Floats:
        """The variance of the weighted mean of a model, and of a difference of two: (2,).

        The sum of the anchors' squared weights, times the variance within clusters (see _variance).
        For the references' own columns, a reference is taken from the features first.
        """
        models, gaps = [], []
        for k, row in enumerate(self._references):
            keep = [d for d in range(self._points.shape[1]) if not self._own or d != k]
            share = self._nearest(seen, self._points[:, keep])[self._point]  # (N, n)
            weights = share.sum(axis=0) / len(share)
            others = np.delete(self._references, k, axis=0)
            models.append(_variance(row, seen, share, weights))
            gaps += [_variance(row - other, seen, share, weights) for other in others]
        variance = float(np.mean(models)) if models else 0.25 / len(seen)
        return np.array([variance, float(np.mean(gaps)) if gaps else 2 * variance])


def _variance(row: Floats, seen: Positions, share: Floats, weights: Floats) -> float:
    """Of the weighted mean: half the mean squared gap between two of a cluster is s^2."""
    squares = (share * (row[:, None] - row[seen]) ** 2).sum(axis=0) / np.maximum(
        share.sum(axis=0), 1e-12
    )
    return float((weights**2).sum() * (weights @ squares) / 2)


def nested_kmeans(
    points: Floats, sizes: Floats, fixed: Floats, count: int, generator: np.random.Generator
) -> Floats:
    """Centres of weighted k-means (Lloyd's steps from k-means++), the first ones fixed.

    points: (points, dimensions), distinct; sizes: (points,), how many items each stands for.
    fixed: (centres, dimensions). Returns `count` centres, or fewer where fewer are distinct.
    """
    centres = [*fixed]
    nearest = np.full(len(points), np.inf)
    for centre in centres:
        nearest = np.minimum(nearest, ((points - centre) ** 2).sum(axis=1))
    while len(centres) < count:
        chance = sizes * (nearest if centres else 1.0)
        if chance.sum() <= 1e-12:
            break
        centre = points[generator.choice(len(points), p=chance / chance.sum())]
        centres.append(centre)
        nearest = np.minimum(nearest, ((points - centre) ** 2).sum(axis=1))
    result = np.array(centres)
    squares = (points**2).sum(axis=1)[:, None]
    for _ in range(LLOYD_STEPS):
        distance = squares - 2 * points @ result.T + (result**2).sum(axis=1)
        label = distance.argmin(axis=1)
        mass = np.bincount(label, sizes, len(result))
        moved = (
            np.stack([np.bincount(label, sizes * x, len(result)) for x in points.T], axis=1)
            / np.maximum(mass, 1e-12)[:, None]
        )
        moved[mass == 0] = result[mass == 0]
        moved[: len(fixed)] = fixed
        if np.allclose(moved, result):
            break
        result = moved
    return result
