"""The front that a surrogate predicts: many compromises at once, by gradients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evomerge.pareto import non_dominated
from evomerge.searchers.quadratic import Quadratic
from evomerge.searchers.surrogate_front import shifted_sobol

Array = NDArray[np.float64]

SMOOTH = (1.0, 0.02)  # of the objectives' ranges: how far each pass rounds a compromise's corners
LEAST = 0.01  # weight of any objective, so that no optimum is dominated
NEARLY = 6  # steps from a front of nearly the same aims
PROGRESS = 1e-5  # of the compromises' sum, below which a pass is over


@dataclass(frozen=True)
class Aim:
    """What is maximised: so much of a prediction and so much of its standard error."""

    model: Quadratic
    mean: float = 1.0
    error: float = 0.0

    def rise(self, points: Array) -> tuple[Array, Array]:
        """Values, (points,), and gradients, (points, genes)."""
        return self.model.rise(points, self.mean, self.error)


def predicted_front(
    aims: Sequence[Aim],
    start: Array,
    size: int,
    steps: int,
    generator: np.random.Generator,
    near: Array | None = None,
) -> Array:
    """Points of the cube that are best by one of many compromises between the aims.

    A compromise is a weighted distance from the ideal, of which the largest aim counts (Chebyshev),
    smoothed so that it has a gradient: Lin et al. 2024, Smooth Tchebycheff Scalarization for
    Multi-Objective Optimization, arXiv:2402.19078, eq. 5. All compromises are one separable
    problem for scipy's L-BFGS-B. Each begins at a point of `start` of its own, since a quadratic
    can have several optima in the cube; in the second pass, at the best that any of them found.

    start: (points, genes), at least as many as compromises. size: of compromises; their weights are
    Sobol points of the simplex, and each aim alone. steps: of L-BFGS-B, in each pass. near:
    (points, genes), a front of nearly the same aims, as it was returned; then the second pass is
    enough, and a few steps.

    Returns:
        Points that none of the others dominates, shape (n, genes).
    """
    from scipy.optimize import linear_sum_assignment

    weights = _weights(len(aims), size, generator)
    points, found = start, start[:0]
    if near is not None:
        # As many as the compromises of the second pass, which come last.
        points, steps = np.vstack([start, near[-size:]]), min(steps, NEARLY)
    for smooth in SMOOTH if near is None else SMOOTH[1:]:
        values = _values(aims, points)
        ideal = values.max(axis=0)
        nadir = values[values.argmax(axis=0)].min(axis=0)
        scale = np.where(ideal > nadir, ideal - nadir, 1.0)
        lacks = weights[:, None, :] * ((ideal - values) / scale)
        losses = lacks.max(axis=2)  # (compromises, points)
        begin = losses.argmin(axis=1)
        if smooth == SMOOTH[0]:
            begin = linear_sum_assignment(losses)[1]
        new = _descend(aims, points[begin], weights / scale, ideal, smooth, steps)
        points, found = np.vstack([points, new]), np.vstack([found, new])
    return found[non_dominated(_values(aims, found))]


def _weights(num_aims: int, size: int, generator: np.random.Generator) -> Array:
    """Each aim alone, and evenly spread over the simplex; the largest is 1. (size, aims)."""
    points = shifted_sobol(max(size - num_aims, 0), num_aims, generator)
    spread = -np.log(np.maximum(points, 1e-12))
    weights = np.vstack([np.eye(num_aims), spread])[:size]
    return np.asarray(np.maximum(weights / weights.max(axis=1, keepdims=True), LEAST))


def _values(aims: Sequence[Aim], points: Array) -> Array:
    """Shape (points, aims)."""
    return np.stack([aim.rise(points)[0] for aim in aims], axis=1)


def _descend(
    aims: Sequence[Aim], start: Array, weights: Array, ideal: Array, smooth: float, steps: int
) -> Array:
    """Each row of start to where its row of weights is best; shape of start."""
    from scipy.optimize import Bounds, minimize

    def total(flat: Array) -> tuple[float, Array]:
        points = flat.reshape(start.shape)
        gradient = np.zeros(start.shape)
        values, rises = zip(*(aim.rise(points) for aim in aims), strict=True)
        lacks = weights * (ideal - np.stack(values, axis=1)) / smooth
        most = lacks.max(axis=1, keepdims=True)
        shares = np.exp(lacks - most)
        sums = shares.sum(axis=1, keepdims=True)
        shares *= weights / sums
        for share, rise in zip(shares.T, rises, strict=True):
            gradient -= share[:, None] * rise
        return smooth * float((most + np.log(sums)).sum()), gradient.ravel()

    found = minimize(
        total,
        start.ravel(),
        jac=True,
        method="L-BFGS-B",
        bounds=Bounds(np.zeros(start.size), np.ones(start.size)),
        options={"maxiter": steps, "maxfun": 2 * steps, "ftol": PROGRESS},
    )
    return np.asarray(np.clip(found.x, 0.0, 1.0).reshape(start.shape))
