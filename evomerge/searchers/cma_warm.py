"""Where a search begins that knows another run's candidates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from evomerge.records import Evaluation
from evomerge.searchers.order import is_scored, total_order


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
    Optimization, AAAI 2021, arXiv:2012.06932, eq. 7: a mixture of round normal distributions at the
    points, all of one width (the paper's alpha), is replaced by the normal distribution with its
    mean and covariance.

    points: shape (n, genes), n > 0.
    """
    mean = points.mean(axis=0)
    away = points - mean
    covariance = away.T @ away / len(points) + width**2 * np.eye(points.shape[1])
    return Distribution(mean, covariance)
