"""Parzen densities of genes that are modelled together: products of kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from evomerge.searchers.kernels import (
    BLOCK,
    Array,
    Cells,
    Column,
    bandwidths,
    mean_bandwidths,
    recency,
)

OneHot = NDArray[np.float32]  # exact: sums are counts of genes


class Kernels(NamedTuple):
    """Of a mixture, up to a factor: log densities, linear in a point's features.

    slopes: of ordered genes' coordinates, and of their squares, (kernels, 2 genes); names: which
    each kernel has, (kernels, names), and `agreement`, what a gene with the same one is worth;
    constants: (kernels,), with the logarithms of the weights.
    """

    slopes: Array
    names: OneHot
    constants: Array
    agreement: float

    def at(self, ordered: Array, names: OneHot) -> Array:
        """Log densities of all kernels, shape (points, kernels)."""
        equal = (names @ self.names.T).astype(np.float64)
        return ordered @ self.slopes.T + self.agreement * equal + self.constants

    def joined(self, others: Kernels) -> Kernels:
        """With others of the same mixture."""
        return Kernels(
            np.concatenate([self.slopes, others.slopes]),
            np.concatenate([self.names, others.names]),
            np.append(self.constants, others.constants),
            self.agreement,
        )


class Together:
    """Genes whose kernels are products: so a kernel's log density is linear in a point's features.

    These are an ordered gene's coordinate and its square, and an indicator of every name of
    another: all kernels at all draws are two products of matrices.
    """

    def __init__(self, columns: Sequence[Column], samples: int) -> None:
        self._samples, self._num_genes = samples, len(columns)
        self._ordered = [i for i, column in enumerate(columns) if column.is_ordered]
        self._named = [i for i, column in enumerate(columns) if not column.is_ordered]
        self._num_values = np.array([columns[i].size or 0 for i in self._ordered], dtype=np.int64)
        self._num_names = np.array([columns[i].size for i in self._named], dtype=np.int64)
        self._offsets = np.cumsum(self._num_names) - self._num_names

    def learn_good(self, good: Array) -> None:
        """See `Densities`."""
        from scipy.special import ndtr

        good = good[~np.isnan(good).any(axis=1)]
        self._num_good = len(good)
        self._good = self._mixture(good, bandwidths(good), np.ones(len(good)))
        self._centres = np.vstack([good, np.full(self._num_genes, 0.5)])
        widths = np.vstack([bandwidths(good), np.ones(self._num_genes)])
        centres, self._spreads = self._centres[:, self._ordered], widths[:, self._ordered]
        self._below = ndtr(-centres / self._spreads)
        self._within = ndtr((1.0 - centres) / self._spreads) - self._below

    def learn_bad(self, bad: Array) -> None:
        """See `Densities`."""
        bad = bad[~np.isnan(bad).any(axis=1)]
        widths = bandwidths(bad)
        self._bad = self._mixture(bad, widths, recency(bad[:, :1])[:, 0])
        self._width, self._num_bad = mean_bandwidths(widths)[None], len(bad)
        self._avoided: list[Kernels] = []  # apart from the many, which need not be copied so

    def avoid(self, point: Array) -> None:
        """See `Densities`."""
        if not np.isnan(point).any():
            one = self._kernels(point[None], self._width, np.ones(1), self._num_bad)
            self._avoided = [kernels.joined(one) for kernels in self._avoided] or [one]

    def _mixture(self, points: Array, widths: Array, weights: Array) -> Kernels:
        """Around points, and last the prior: in the middle, as wide as the range, of any name."""
        middle = np.full((1, self._num_genes), 0.5)
        slopes, constants = self._normal(middle, np.ones_like(middle))
        no_name = np.zeros((1, int(self._num_names.sum())), dtype=np.float32)
        prior = Kernels(slopes, no_name, constants - np.log(self._num_names).sum(), 0.0)
        return self._kernels(points, widths, weights, len(points)).joined(prior)

    def _kernels(self, points: Array, widths: Array, weights: Array, count: int) -> Kernels:
        """Around points, of a mixture of so many."""
        slopes, constants = self._normal(points, widths)
        # Of k names, a point's own has (n + 2) / (n + 1 + k), and each of the others a share of 1.
        constants += np.log(weights) - np.log(count + 1.0 + self._num_names).sum()
        return Kernels(slopes, self._one_hot(points), constants, float(np.log(count + 2.0)))

    def _normal(self, points: Array, widths: Array) -> tuple[Array, Array]:
        """Slopes and constants of the ordered genes: truncated, or on their values alone."""
        from scipy.special import ndtr

        centres, spreads = points[:, self._ordered], widths[:, self._ordered]
        precision = 0.5 / spreads**2
        total = spreads * (ndtr((1.0 - centres) / spreads) - ndtr(-centres / spreads))
        for size in np.unique(self._num_values[self._num_values > 0]):
            of_size = np.flatnonzero(self._num_values == size)
            middles = (np.arange(size) + 0.5) / size
            step = max(1, BLOCK // (len(of_size) * int(size)))
            for start in range(0, len(points), step):
                rows = np.arange(start, min(start + step, len(points)))
                some = rows[:, None], of_size
                away = (middles - centres[some][..., None]) ** 2
                total[some] = np.exp(-away * precision[some][..., None]).sum(axis=-1)
        constants = -(precision * centres**2 + np.log(total)).sum(axis=1)
        return np.hstack([2.0 * precision * centres, -precision]), constants

    def _one_hot(self, points: Array) -> OneHot:
        """Indicators of the names of points, shape (points, names)."""
        names = (points[:, self._named] * self._num_names).astype(np.int64)
        indicators = np.zeros((len(points), int(self._num_names.sum())), dtype=np.float32)
        indicators[np.arange(len(points))[:, None], self._offsets + names] = 1.0
        return indicators

    def draw(self, generator: np.random.Generator) -> Array:
        """Coordinates, shape (genes,)."""
        chosen = generator.integers(len(self._centres), size=self._samples)
        points = np.empty((self._samples, self._num_genes))
        points[:, self._ordered] = self._drawn_ordered(chosen, generator)
        points[:, self._named] = self._drawn_named(chosen, generator)
        return np.asarray(points[int(np.argmax(self.log_ratio(points)))])

    def log_ratio(self, points: Array) -> Array:
        """How much likelier than bad points are good, as a logarithm, up to a constant.

        points: (points, genes), values in the middle of their cells. Shape (points,).
        """
        coordinates = points[:, self._ordered]
        ordered = np.hstack([coordinates, coordinates**2])
        names = self._one_hot(points)
        bad = [kernels.at(ordered, names) for kernels in (self._bad, *self._avoided)]
        return _log_sum(self._good.at(ordered, names)) - _log_sum(np.hstack(bad))

    def _drawn_ordered(self, chosen: Cells, generator: np.random.Generator) -> Array:
        """From truncated normal distributions, by their quantiles; shape (draws, ordered)."""
        from scipy.special import ndtri

        within = self._within[chosen]
        quantiles = self._below[chosen] + generator.random(within.shape) * within
        centres = self._centres[chosen[:, None], self._ordered]
        drawn = np.clip(centres + self._spreads[chosen] * ndtri(quantiles), 0.0, 1.0)
        size = np.maximum(self._num_values, 1)
        middles = (np.minimum(np.floor(drawn * size), size - 1) + 0.5) / size
        return np.asarray(np.where(self._num_values > 0, middles, drawn))

    def _drawn_named(self, chosen: Cells, generator: np.random.Generator) -> Array:
        """A kernel's own names, or any; shape (draws, named)."""
        own = 1.0 / (1.0 + self._num_names / (self._num_good + 1.0))
        is_own = generator.random((len(chosen), len(self._named))) < own
        is_own &= (chosen < self._num_good)[:, None]
        anything = generator.integers(self._num_names, size=is_own.shape)
        middles = (anything + 0.5) / self._num_names
        return np.asarray(np.where(is_own, self._centres[chosen[:, None], self._named], middles))


def _log_sum(each: Array) -> Array:
    """The logarithms of sums along the last axis."""
    top = each.max(axis=-1, keepdims=True)
    return np.asarray(top[..., 0] + np.log(np.exp(each - top).sum(axis=-1)))
