"""Links of a generalised linear model: what a linear predictor goes through to be a score."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Link = Literal["identity", "sigmoid", "softplus"]

STEEPEST = 30.0  # a linear predictor beyond it is the link's limit, to double precision


def mean_of(link: Link, line: Array) -> Array:
    """The link's mean of a linear predictor."""
    if link == "identity":
        return line
    line = np.clip(line, -STEEPEST, STEEPEST)
    return 1.0 / (1.0 + np.exp(-line)) if link == "sigmoid" else np.log1p(np.exp(line))


def slope_of(link: Link, line: Array) -> Array:
    """The derivative of the mean; never quite 0, so that a saturated point can come back."""
    if link == "identity":
        return np.ones(len(line))
    share = 1.0 / (1.0 + np.exp(-np.clip(line, -STEEPEST, STEEPEST)))
    return np.maximum(share * (1.0 - share) if link == "sigmoid" else share, 1e-6)


def curvature_of(link: Link, line: Array) -> Array:
    """The derivative of the slope."""
    if link == "identity":
        return np.zeros(len(line))
    share = 1.0 / (1.0 + np.exp(-np.clip(line, -STEEPEST, STEEPEST)))
    change = share * (1.0 - share)
    return change * (1.0 - 2.0 * share) if link == "sigmoid" else change


def inverse_of(link: Link, mean: float) -> float:
    """The linear predictor of a mean, kept from the link's limits."""
    if link == "identity":
        return mean
    if link == "sigmoid":
        inside = min(max(mean, 0.01), 0.99)
        return float(np.log(inside / (1 - inside)))
    return float(np.log(np.expm1(max(mean, 1e-3)))) if mean < STEEPEST else mean
