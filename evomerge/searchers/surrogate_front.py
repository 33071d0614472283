"""Which points a surrogate makes worth measuring."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

from evomerge.pareto import non_dominated
from evomerge.searchers.quadratic import Quadratic

Array = NDArray[np.float64]
Indices = NDArray[np.int64]

ANGLES = 1 << 12  # bins at most
PROBES = 1 << 12  # points that a hypervolume is counted with


def sobol(count: int, dimensions: int, generator: np.random.Generator) -> Array:
    """Scrambled Sobol points of the cube, shape (count, dimensions)."""
    from scipy.stats import qmc

    if count == 0:
        return np.empty((0, dimensions))
    power = max(count - 1, 0).bit_length()
    return np.asarray(qmc.Sobol(dimensions, rng=generator).random_base2(power)[:count])


def shifted_sobol(count: int, dimensions: int, generator: np.random.Generator) -> Array:
    """The same points at each call but for a random shift around the torus: a tenth of the time.

    Cranley and Patterson 1976, https://doi.org/10.1137/0713071.
    """
    points = _plain_sobol(count, dimensions) + generator.random(dimensions)
    return np.asarray(points % 1.0)


@cache
def _plain_sobol(count: int, dimensions: int) -> Array:
    from scipy.stats import qmc

    power = max(count - 1, 0).bit_length()
    return np.asarray(qmc.Sobol(dimensions, scramble=False).random_base2(power)[:count])


def relevance(values: Array, num_terms: int) -> Array:
    """How much points count for a surrogate of the front, in (0, 1]; shape (points,).

    values: (points, objectives). It falls with a point's distance behind the front (what all its
    objectives lack of some point of the front, in units of their ranges), the more points there
    are: for twice as many as a quadratic has terms, it stays above a half.
    """
    scale = np.where(np.ptp(values, axis=0) > 0, np.ptp(values, axis=0), 1.0)
    scaled = values / scale
    front = scaled[non_dominated(values)]
    lacks = np.full((len(front), len(scaled)), -np.inf)
    for best, value in zip(front.T, scaled.T, strict=True):
        np.maximum(lacks, best[:, None] - value, out=lacks)
    behind = lacks.min(axis=0)
    width = float(np.sort(behind)[min(2 * num_terms, len(behind)) - 1])
    return np.asarray(1.0 / (1.0 + (behind / width) ** 2)) if width > 0 else np.ones(len(values))


def spread(values: Array, known: Array, count: int) -> list[int]:
    """At most `count` of some values that lie far from each other and from those that are known.

    values: (n, objectives); known: (m, objectives). The best of each objective come first, then
    always the one farthest from all that are chosen or known (Gonzalez 1985), in units of the
    values' ranges.
    """
    low, size = values.min(axis=0), np.ptp(values, axis=0)
    scale = np.where(size > 0, size, 1.0)
    scaled, anchors = (values - low) / scale, (known - low) / scale
    distance = np.full(len(scaled), np.inf)
    for anchor in anchors:
        distance = np.minimum(distance, np.linalg.norm(scaled - anchor, axis=1))
    chosen: list[int] = []
    extremes = [int(i) for i in dict.fromkeys(scaled.argmax(axis=0).tolist())]
    while len(chosen) < min(count, len(scaled)):
        following = extremes.pop(0) if extremes else int(np.argmax(distance))
        chosen.append(following)
        distance = np.minimum(distance, np.linalg.norm(scaled - scaled[following], axis=1))
        distance[following] = -1.0
    return chosen


def most_volume(
    values: Array, known: Array, count: int, generator: np.random.Generator
) -> list[int]:
    """At most `count` of some values, each the one that adds most hypervolume after the others.

    values: (n, objectives), predicted; known: (m, objectives), of what is
    measured. Volumes are counted with
    Sobol points of the box between the best values and a reference point that lies a tenth of the
    known front's range below its worst. Values that add nothing are not chosen.
    """
    front = known[non_dominated(known)]
    best = np.vstack([values, front]).max(axis=0)
    low = front.min(axis=0)
    reference = low - 0.1 * np.where(best > low, best - low, 1.0)
    probes = reference + (best - reference) * shifted_sobol(PROBES, values.shape[1], generator)
    probes = probes[~_below(probes, front).any(axis=0)]
    below = _below(probes, values)
    chosen: list[int] = []
    for _ in range(count):
        gains = np.count_nonzero(below, axis=1)
        following = int(np.argmax(gains))
        if gains[following] == 0:
            break
        chosen.append(following)
        below = below[:, ~below[following]]
    return chosen


def _below(probes: Array, values: Array) -> NDArray[np.bool_]:
    """Which probes each of some values is as good as, everywhere; shape (values, probes)."""
    below = np.ones((len(values), len(probes)), dtype=bool)
    for probe, value in zip(probes.T, values.T, strict=True):
        below &= probe <= value[:, None]
    return below


def most_uncertain(models: Sequence[Quadratic], scales: Array, pool: Array, count: int) -> Indices:
    """So many of a pool's points, each where the predictions are least certain after the others.

    scales: (objectives,), what counts as much in one objective as in another. A point that is
    chosen counts as measured with the model's own noise, which takes one rank of its covariance.
    """
    slopes = [model.slopes(pool) for model in models]
    # H r of every point, with H the inverse of the normal matrix, which times the noise is the
    # covariance. A point m with noise takes (H r_m)(H r_m)' / (1 + r_m' H r_m) from H: a step of a
    # pivoted Cholesky factorisation, of which only the columns of chosen points are computed.
    along = [row @ model.inverse for row, model in zip(slopes, models, strict=True)]
    count = min(count, len(pool))
    scaled = [np.empty((count, len(pool))) for _ in models]
    weights = [model.noise / scale**2 for model, scale in zip(models, scales, strict=True)]
    left = [np.einsum("ij,ij->i", a, row) for a, row in zip(along, slopes, strict=True)]
    taken = np.zeros(len(pool), dtype=bool)
    chosen: list[int] = []
    for step in range(count):
        total = sum(weight * one for weight, one in zip(weights, left, strict=True))
        following = int(np.argmax(np.where(taken, -np.inf, total)))
        chosen.append(following)
        taken[following] = True
        for k, row in enumerate(slopes):
            before = scaled[k][:step]
            shared = along[k] @ row[following] - before[:, following] @ before
            scaled[k][step] = shared / np.sqrt(1.0 + max(shared[following], 0.0))
            left[k] -= scaled[k][step] ** 2
    return np.array(chosen, dtype=np.int64)


def bins_of(points: Array) -> Indices:
    """The bin of each point by its angles about the cube's corner, as MAP's Bayesian variant has.

    Four intervals of each angle below four dimensions, two from there on. Shape (points,).
    """
    squares = np.cumsum((points**2)[:, ::-1], axis=1)[:, ::-1]
    angles = np.arctan2(np.sqrt(squares[:, 1:]), points[:, :-1])  # in [0, pi / 2]
    intervals = 4 if points.shape[1] < 4 else 2
    parts = np.minimum((angles / (np.pi / 2) * intervals).astype(np.int64), intervals - 1)
    number = np.zeros(len(points), dtype=np.int64)
    for column in parts.T:
        number = (number * intervals + column) % ANGLES
    return number


def by_bins(
    models: Sequence[Quadratic], scales: Array, points: Array, pool: Array, count: int
) -> Indices:
    """So many of a pool's points, spread over bins by how badly the surrogate predicts there.

    A bin's acquisition is the mean of the errors of its measured points plus half their standard
    deviation (MAP, appendix on Bayesian adaptive sampling); bins without a point have the largest
    of the others. Points go to bins in that proportion; in a bin the least certain come first.
    """
    errors = np.sum(
        [np.abs(m.left_out) / scale for m, scale in zip(models, scales, strict=True)], axis=0
    )
    measured, offered = bins_of(points), bins_of(pool)
    known = {
        int(b): float(errors[measured == b].mean() + errors[measured == b].std() / 2)
        for b in np.unique(measured)
    }
    bins = np.unique(offered)
    worst = max(known.values())
    shares = np.array([known.get(int(b), worst) for b in bins])
    shares = shares / shares.sum() if shares.sum() > 0 else np.full(len(bins), 1 / len(bins))
    counts = np.floor(shares * count).astype(np.int64)
    rest = np.argsort(-(shares * count - counts), kind="stable")[: count - int(counts.sum())]
    counts[rest] += 1
    order = [
        np.flatnonzero(offered == b)[
            most_uncertain(models, scales, pool[offered == b], int(number))
        ]
        for b, number in zip(bins, counts, strict=True)
        if number
    ]
    chosen = np.concatenate(order) if order else np.empty(0, dtype=np.int64)
    left = np.setdiff1d(np.arange(len(pool)), chosen)
    # Where a bin is offered fewer points than it should get, others take their place.
    return np.append(chosen, left[most_uncertain(models, scales, pool[left], count - len(chosen))])
