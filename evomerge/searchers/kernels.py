"""Kernels of a Parzen estimator on [0, 1]: how wide they are, how much they weigh and cover.

As optuna has them (Watanabe 2023, arXiv:2304.11127, section 3.3), but that an ordered gene with
values has a normal density in the middle of each, rather than its mass on each: then logarithms are
exact however far away a value is. A missing coordinate is NaN.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Cells = NDArray[np.int64]

CELLS = 64  # of a real gene that is modelled alone; an ordered one with more values is as good
BLOCK = 1 << 17  # masses that are computed at once
NARROWEST = 0.01  # bandwidth
RECENT = 25  # points that weigh 1; those before them the less, the older they are


class Column(NamedTuple):
    """A gene. size: of how many values or names; None for a real one, and one that is as good."""

    size: int | None
    is_ordered: bool


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


def recency(points: Array) -> Array:
    """What points weigh in each column, the oldest first; shape as points, 0 where one is NaN."""
    has = ~np.isnan(points)
    counts = np.count_nonzero(has, axis=0)
    place, first = np.cumsum(has, axis=0) - 1, 1.0 / np.maximum(counts, 1)
    ramp = first + (1.0 - first) * place / np.maximum(counts - RECENT - 1, 1)
    return np.where(has, np.where(place >= counts - RECENT, 1.0, ramp), 0.0)


def cell_masses(centres: Array, widths: Array, cells: int) -> Array:
    """What kernels of ordered genes give to so many equal cells, by the density in their middles.

    Shape (..., cells); NaN as 0.
    """
    middles = (np.arange(cells) + 0.5) / cells
    away = (middles - centres[..., None]) / widths[..., None]
    # The nearest middle has 1, so that there is something to divide by.
    density = np.exp(0.5 * ((away**2).min(axis=-1, keepdims=True) - away**2))
    return np.asarray(np.nan_to_num(density / density.sum(axis=-1, keepdims=True), copy=False))


def name_masses(points: Array, counts: Cells, size: int) -> Array:
    """What kernels of genes with names give to each of so many, shape (..., size); NaN as 0.

    counts: how many points a column has; the more, the less is for other names than a point's own.
    """
    others = 1.0 / (counts + 1.0)[..., None]
    own = np.minimum(np.nan_to_num(points * size, nan=0.0).astype(np.int64), size - 1)
    masses = ((own[..., None] == np.arange(size)) + others) / (1.0 + size * others)
    return np.where(np.isnan(points)[..., None], 0.0, masses)
