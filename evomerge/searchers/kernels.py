"""Kernels of a Parzen estimator on [0, 1]: bandwidths, and the mass that they give to cells.

As optuna has them (Watanabe 2023, arXiv:2304.11127, section 3.3): truncated normal distributions
of ordered genes, and a point's own name with a little of all others. NaN is no point.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Cells = NDArray[np.int64]

NARROWEST = 0.01  # bandwidth


def bandwidths(points: Array) -> Array:
    """Of each point's kernel in each column: the larger distance to a neighbour, shape as points.

    The outermost of two or more look inwards only. At least 1 / (n + 2), n the column's points, or
    a hundredth, whichever is more; NaN where a point is.
    """
    counts = np.count_nonzero(~np.isnan(points), axis=0)
    order = np.argsort(points, axis=0, kind="stable")  # NaN come last
    ordered = np.take_along_axis(points, order, axis=0)
    low, high = np.zeros((1, points.shape[1])), np.ones((1, points.shape[1]))
    gaps = np.diff(np.vstack([low, np.where(np.isnan(ordered), 1.0, ordered), high]), axis=0)
    rows = np.arange(len(points))[:, None]
    left = np.where((counts >= 2) & (rows == 0), 0.0, gaps[:-1])
    right = np.where((counts >= 2) & (rows == counts - 1), 0.0, gaps[1:])
    least = np.maximum(NARROWEST, 1.0 / (counts + 2.0))
    widths = np.empty_like(points)
    np.put_along_axis(widths, order, np.clip(np.maximum(left, right), least, 1.0), axis=0)
    return np.where(np.isnan(points), np.nan, widths)


def mean_bandwidths(widths: Array) -> Array:
    """Of each column, shape (columns,), for points that come later; 1 where there is none."""
    counts = np.count_nonzero(~np.isnan(widths), axis=0)
    return np.where(counts > 0, np.nansum(widths, axis=0) / np.maximum(counts, 1), 1.0)


def truncated_mass(centres: Array, spreads: Array) -> tuple[Array, Array]:
    """The mass of normal distributions below 0, and in [0, 1]."""
    from scipy.special import ndtr

    below = ndtr(-centres / spreads)
    return below, ndtr((1.0 - centres) / spreads) - below


def cell_masses(centres: Array, spreads: Array, cells: int) -> Array:
    """The mass of truncated normal distributions in equal cells, shape (..., cells); NaN as 0."""
    from scipy.special import ndtr

    edges = np.linspace(0.0, 1.0, cells + 1)
    cumulative = ndtr((edges - centres[..., None]) / spreads[..., None])
    within = cumulative[..., -1:] - cumulative[..., :1]
    return _without_nan(np.diff(cumulative, axis=-1) / within)


def fine_masses(centres: Array, spreads: Array, cells: int) -> Array:
    """As `cell_masses`, by the density in the middle of each cell: for cells that are many."""
    middles = (np.arange(cells) + 0.5) / cells
    away = (middles - centres[..., None]) / spreads[..., None]
    density = np.exp(-0.5 * away**2)
    return _without_nan(density / density.sum(axis=-1, keepdims=True))


def name_masses(points: Array, counts: Cells, size: int) -> Array:
    """The mass of kernels on each of so many names, shape (..., size); NaN as 0.

    counts: how many points a column has; the more, the less is for other names than a point's own.
    """
    others = 1.0 / (counts + 1.0)[..., None]
    own = np.minimum(np.nan_to_num(points * size, nan=0.0).astype(np.int64), size - 1)
    masses = ((own[..., None] == np.arange(size)) + others) / (1.0 + size * others)
    return np.where(np.isnan(points)[..., None], 0.0, masses)


def _without_nan(masses: Array) -> Array:
    return np.asarray(np.nan_to_num(masses, copy=False))
