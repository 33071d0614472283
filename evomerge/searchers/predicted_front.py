"""The front that a surrogate predicts: many compromises at once, by gradients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from evomerge.pareto import non_dominated
from evomerge.searchers.quadratic import Quadratic, Tangents, terms
from evomerge.searchers.surrogate_front import shifted_sobol

Array = NDArray[np.float64]

SMOOTH = (1.0, 0.02)  # of the objectives' ranges: how far each pass rounds a compromise's corners
LEAST = 0.01  # weight of any objective, so that no optimum is dominated
TURNS = 2  # where standard errors are aimed at
NEARLY = 12  # steps from a front of nearly the same aims
FEW = 6  # the same where standard errors are aimed at
PROGRESS = 1e-5  # of the compromises' sum, below which a pass is over


@dataclass(frozen=True)
class Aim:
    """What is maximised: so much of a prediction and so much of its standard error."""

    model: Quadratic
    mean: float = 1.0
    error: float = 0.0

    def values(self, points: Array, rows: Array | None) -> Array:
        """Shape (points,); rows: the points' terms."""
        values = self.mean * self.model.predict(points) if self.mean else np.zeros(len(points))
        return values + self.error * self.model.error(points, rows) if self.error else values

    def rise(self, points: Array, tangents: Tangents | None = None) -> tuple[Array, Array]:
        """Values, (points,), and gradients, (points, genes); tangents: see `Quadratic.rise`."""
        return self.model.rise(points, self.mean, self.error, tangents)


class Front(NamedTuple):
    """Points of the cube, (n, genes), and their aims, (n, aims)."""

    points: Array
    values: Array


def predicted_front(
    aims: Sequence[Aim],
    start: Array,
    size: int,
    steps: int,
    generator: np.random.Generator,
    near: Array | None = None,
) -> Front:
    """Points of the cube that are best by one of many compromises between the aims.

    A compromise is a weighted distance from the ideal, of which the largest aim counts (Chebyshev),
    smoothed so that it has a gradient: Lin et al. 2024, Smooth Tchebycheff Scalarization for
    Multi-Objective Optimization, arXiv:2402.19078, eq. 5. All compromises are one separable
    problem for scipy's L-BFGS-B. Each begins at a point of `start` of its own, since a quadratic
    can have several optima in the cube; in the second pass, at the best that any of them found.

    start: (points, genes), at least as many as compromises. size: of compromises; their weights are
    Sobol points of the simplex, and each aim alone. steps: of L-BFGS-B, in each pass. near:
    (points, genes), a front of nearly the same aims, as it was returned; then a few steps are
    enough, and where there are standard errors, the second pass.

    Returns:
        Points that none of the others dominates, of those that were found and of `near`.
    """
    from scipy.optimize import linear_sum_assignment

    weights = _weights(len(aims), size, generator)
    points, is_dear = start, any(aim.error for aim in aims)
    passes: tuple[float, ...] = SMOOTH
    if near is not None:
        # As many as the compromises of the second pass, which come last.
        points = np.vstack([start, near[-size:]])
        passes = SMOOTH[1:] if is_dear else SMOOTH
        steps = min(steps, FEW if is_dear else NEARLY)
    values = _values(aims, points)
    for smooth in passes:
        ideal = values.max(axis=0)
        nadir = values[values.argmax(axis=0)].min(axis=0)
        scale = np.where(ideal > nadir, ideal - nadir, 1.0)
        lacks = weights[:, None, :] * ((ideal - values) / scale)
        losses = lacks.max(axis=2)  # (compromises, points)
        begin = losses.argmin(axis=1)
        if smooth == SMOOTH[0]:
            begin = linear_sum_assignment(losses)[1]
        new = _descend(aims, points[begin], weights / scale, ideal, smooth, steps)
        points, values = np.vstack([points, new]), np.vstack([values, _values(aims, new)])
    front = len(start) + np.flatnonzero(non_dominated(values[len(start) :]))
    return Front(points[front], values[front])


def _weights(num_aims: int, size: int, generator: np.random.Generator) -> Array:
    """Each aim alone, and evenly spread over the simplex; the largest is 1. (size, aims)."""
    points = shifted_sobol(max(size - num_aims, 0), num_aims, generator)
    spread = -np.log(np.maximum(points, 1e-12))
    weights = np.vstack([np.eye(num_aims), spread])[:size]
    return np.asarray(np.maximum(weights / weights.max(axis=1, keepdims=True), LEAST))


def _values(aims: Sequence[Aim], points: Array) -> Array:
    """Shape (points, aims)."""
    rows = _rows(aims, points)
    return np.stack([aim.values(points, rows) for aim in aims], axis=1)


def _rows(aims: Sequence[Aim], points: Array) -> Array | None:
    """The terms of some points, which are all models' own; None if nobody needs them."""
    products = [aim.model.products for aim in aims if aim.error]
    return terms(points, products[0]) if products else None


def _descend(
    aims: Sequence[Aim], start: Array, weights: Array, ideal: Array, smooth: float, steps: int
) -> Array:
    """Each row of start to where its row of weights is best; shape of start.

    Standard errors are dear. In their place stand quadratics that are nowhere larger and touch them
    where a turn begins: what rises with those rises with them (minorize and maximize; Hunter and
    Lange 2004, https://doi.org/10.1198/0003130042836).
    """
    turns = TURNS if any(aim.error for aim in aims) else 1
    for _ in range(turns):
        rows = _rows(aims, start)
        tangents = [aim.model.tangents(start, rows) if aim.error else None for aim in aims]
        start = _climb(aims, tangents, start, weights, ideal, smooth, -(-steps // turns**2))
    return start


def _climb(
    aims: Sequence[Aim],
    tangents: Sequence[Tangents | None],
    start: Array,
    weights: Array,
    ideal: Array,
    smooth: float,
    steps: int,
) -> Array:
    """A turn of `_descend`."""
    from scipy.optimize import fmin_l_bfgs_b

    def total(flat: Array) -> tuple[float, Array]:
        points = flat.reshape(start.shape)
        gradient = np.zeros(start.shape)
        rising = (aim.rise(points, near) for aim, near in zip(aims, tangents, strict=True))
        values, rises = zip(*rising, strict=True)
        lacks = weights * (ideal - np.stack(values, axis=1)) / smooth
        most = lacks.max(axis=1, keepdims=True)
        shares = np.exp(lacks - most)
        sums = shares.sum(axis=1, keepdims=True)
        shares *= weights / sums
        for share, rise in zip(shares.T, rises, strict=True):
            gradient -= share[:, None] * rise
        return smooth * float((most + np.log(sums)).sum()), gradient.ravel()

    # Not by `minimize`, which takes milliseconds to look at so many bounds.
    found, _, _ = fmin_l_bfgs_b(
        total,
        start.ravel(),
        bounds=[(0.0, 1.0)] * start.size,
        factr=PROGRESS / np.finfo(np.float64).eps,
        maxiter=steps,
        maxfun=2 * steps,
    )
    return np.asarray(np.clip(found, 0.0, 1.0).reshape(start.shape))
