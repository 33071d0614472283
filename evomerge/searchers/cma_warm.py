"""Where a search begins that knows another run's candidates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from evomerge.records import Evaluation
from evomerge.searchers.order import is_scored, total_order

PRIOR_STD = 0.1  # the paper's alpha
SHRINKAGE = 0.01
LEAST_VARIANCE = 1e-24  # below are rounding errors of equal points


class Distribution(NamedTuple):
    """A normal distribution in the cube."""

    mean: NDArray[np.float64]  # (genes,)
    covariance: NDArray[np.float64]  # (genes, genes)


def best_of(evaluations: Sequence[Evaluation], share: float) -> list[Evaluation]:
    """The best share of those with a score, at least one, from the best on; [] if there is none."""
    ranked = [evaluations[i] for i in total_order(evaluations)]
    valid = [e for e in ranked if is_scored(e) and e.violation <= 0]
    return valid[: math.ceil(share * len(valid))]


def promising(points: NDArray[np.float64], width: float) -> Distribution:
    """The distribution from which good points of another run seem to come.

    Nomura, Watanabe, Akimoto, Ozaki & Onishi, Warm Starting CMA-ES for Hyperparameter
    Optimization, AAAI 2021, arXiv:2012.06932, eq. 7: the points' mean, and their covariance with a
    round one of standard deviation .1 added. Where there are points enough to see a shape, that
    would hide it: then their covariance is shrunk towards a round one of the same size, and made
    larger as a whole if it is smaller than the width.

    points: shape (n, genes), n > 0. width: least geometric mean of the standard deviations.
    """
    num_points, num_genes = points.shape
    mean = points.mean(axis=0)
    away = points - mean
    covariance = away.T @ away / num_points
    size = float(np.trace(covariance)) / num_genes
    if num_points <= 2 * num_genes or size < LEAST_VARIANCE:
        return Distribution(mean, covariance + PRIOR_STD**2 * np.eye(num_genes))
    covariance = (1 - SHRINKAGE) * covariance + SHRINKAGE * size * np.eye(num_genes)
    _, logarithm = np.linalg.slogdet(covariance)
    growth = max(1.0, width / math.exp(logarithm / 2 / num_genes))
    return Distribution(mean, growth**2 * covariance)
