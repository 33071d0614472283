"""A Gaussian process over genomes: what like merges scored tells of this one.

Rasmussen & Williams, Gaussian Processes for Machine Learning (2006), ch. 2 and 5. A noisy score is
taken as the sum of

- a smooth function of the genome (Matern 5/2, one length for all genes),
- what is the candidate's own, beside its genome's neighbourhood,
- what the items at hand do to everybody who answers them, and
- noise, whose variance the score brings along.

The first two are wanted. What the items share (their luck is common to all who answer them) is not
noise between these, so a share of each score's variance is moved from the last to the third.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

LENGTHS = (0.1, 0.2, 0.4, 0.8, 1.6)  # in units of the cube's diagonal
SIGNALS = (0.25, 0.5, 1.0, 2.0)  # variance of the smooth part, in units of what noise leaves
OWN = (0.01, 0.1, 0.3)  # variance of a candidate's own part, in units of the smooth part's
SHARED = (0.0, 0.5)  # share of a score's variance that all who answer the same items have
FEWEST = 6  # scores below which nothing is learnt


@dataclass(frozen=True)
class Scored:
    """Scores to learn from, and what they belong to.

    genomes: (n, genes) in [0, 1]. values, variances: (n,). groups: (n,) equal for those who
    answered the same items.
    """

    genomes: Floats
    values: Floats
    variances: Floats
    groups: NDArray[np.int64]


@dataclass(frozen=True)
class Shape:
    """The process's parameters."""

    length: float
    signal: float
    own: float
    shared: float


def fit(scored: Scored) -> Shape | None:
    """The most likely parameters on a grid; None where there is too little, or only noise."""
    if len(scored.values) < FEWEST:
        return None
    left = float(np.var(scored.values))
    best: tuple[float, Shape] | None = None
    distances = _distances(scored.genomes, scored.genomes)
    for shared in SHARED:
        floor = max(left - (1 - shared) * float(scored.variances.mean()), 0.05 * left)
        for length, signal, own in product(LENGTHS, SIGNALS, OWN):
            shape = Shape(length, signal * floor, own * signal * floor, shared)
            likelihood = _log_likelihood(scored, shape, distances)
            if best is None or likelihood > best[0]:
                best = likelihood, shape
    return best[1] if best is not None and left > 0 else None


def posterior(scored: Scored, shape: Shape, wanted: Sequence[int]) -> tuple[Floats, Floats]:
    """Mean and variance of the true scores of the rows `wanted`, items' luck apart."""
    covariance = _covariance(scored, shape, _distances(scored.genomes, scored.genomes))
    rows = list(wanted)
    smooth = shape.signal * _matern(_distances(scored.genomes[rows], scored.genomes), shape.length)
    smooth[np.arange(len(rows)), rows] += shape.own
    ones = np.ones(len(scored.values))
    solved = np.linalg.solve(covariance, np.column_stack([ones, scored.values, smooth.T]))
    weight = float(ones @ solved[:, 0])
    mean = float(ones @ solved[:, 1]) / weight
    residual = solved[:, 1] - mean * solved[:, 0]
    values = mean + smooth @ residual
    prior = shape.signal + shape.own
    # The mean is estimated too (Rasmussen & Williams, eq. 2.42).
    lacking = 1 - smooth @ solved[:, 0]
    variances = prior - np.einsum("ij,ji->i", smooth, solved[:, 2:]) + lacking**2 / weight
    return values, np.maximum(variances, 1e-12)


def _log_likelihood(scored: Scored, shape: Shape, distances: Floats) -> float:
    covariance = _covariance(scored, shape, distances)
    try:
        factor = np.linalg.cholesky(covariance)
    except np.linalg.LinAlgError:
        return -np.inf
    ones = np.ones(len(scored.values))
    solved = np.linalg.solve(factor, np.column_stack([ones, scored.values]))
    mean = float(solved[:, 0] @ solved[:, 1] / (solved[:, 0] @ solved[:, 0]))
    residual = solved[:, 1] - mean * solved[:, 0]
    return float(-0.5 * residual @ residual - np.log(np.diag(factor)).sum())


def _covariance(scored: Scored, shape: Shape, distances: Floats) -> Floats:
    noise = (1 - shape.shared) * scored.variances + shape.own + 1e-9
    luck = shape.shared * float(scored.variances.mean())
    same = scored.groups[:, None] == scored.groups[None, :]
    found: Floats = shape.signal * _matern(distances, shape.length) + luck * same + np.diag(noise)
    return found


def _matern(distances: Floats, length: float) -> Floats:
    """Matern 5/2 (Rasmussen & Williams, eq. 4.17)."""
    scaled = np.sqrt(5) * distances / length
    found: Floats = (1 + scaled + scaled**2 / 3) * np.exp(-scaled)
    return found


def _distances(first: Floats, second: Floats) -> Floats:
    """Euclidean, in units of the cube's diagonal; shape (first, second)."""
    squares = (first**2).sum(1)[:, None] + (second**2).sum(1)[None, :] - 2 * first @ second.T
    found: Floats = np.sqrt(np.maximum(squares, 0.0) / first.shape[1])
    return found
