"""Parzen densities of good and of bad points, and points that are likelier good.

The densities are optuna's (see kernels.py), arranged so that a draw is a few operations on whole
arrays, however many genes there are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from evomerge.searchers.kernels import (
    Array,
    Cells,
    bandwidths,
    cell_masses,
    fine_masses,
    mean_bandwidths,
    name_masses,
    truncated_mass,
)

CELLS = 64  # of a real gene that is modelled alone; an ordered one with more values is as good
TINY = 1e-100  # the least mass that a kernel gives a cell
GROWTH = 0.1  # of the bad points, until bandwidths are found anew
BLOCK = 1 << 17  # masses that are computed at once


class Column(NamedTuple):
    """A gene. size: how many values it has; None for a real one, and one that is as good."""

    size: int | None
    is_ordered: bool


class Densities:
    """Where good points are, and where bad ones are, by groups of genes.

    Genes of a group are modelled together: a kernel is a product over them, around a point that
    has them all. Groups are independent of each other. Coordinates are in [0, 1]; the value v of k
    is the cell [v / k, (v + 1) / k).

    Args:
        groups: of columns, each column in one.
        samples: draws from the good, for each group, of which the likeliest good is taken.
    """

    def __init__(
        self, columns: Sequence[Column], groups: Sequence[Sequence[int]], samples: int
    ) -> None:
        coarse = [
            Column(None, True) if c.is_ordered and (c.size or 0) > CELLS else c for c in columns
        ]
        alone: dict[Column, list[int]] = {}
        for first, *others in groups:
            if not others:
                alone.setdefault(coarse[first], []).append(first)
        self._models: list[tuple[list[int], Alone | Together]] = [
            (members, Alone(column, samples)) for column, members in alone.items()
        ]
        for group in groups:
            if len(group) > 1:
                together = Together([coarse[i] for i in group], samples)
                self._models.append((list(group), together))
        self._places = {
            column: (number, place)
            for number, (members, _) in enumerate(self._models)
            for place, column in enumerate(members)
        }

    def learn(self, good: Array, bad: Array, weights: Array) -> None:
        """Forget all else, and know these points, shapes (n, columns) and (m, columns).

        NaN: a gene that does not matter there. weights: of the bad, shape (m,); the good weigh 1.
        """
        for members, model in self._models:
            model.learn_good(good[:, members])
        self._learn_bad(bad, weights)

    def _learn_bad(self, bad: Array, weights: Array) -> None:
        self._bad, self._weights = bad, weights
        self._avoided: list[Array] = []
        for members, model in self._models:
            model.learn_bad(bad[:, members], weights)

    def avoid(self, point: Array) -> None:
        """One more bad point, shape (columns,), which weighs 1.

        With every tenth more, the bandwidths are those of all that are bad; until then, the new
        ones have the mean of the others'.
        """
        self._avoided.append(point)
        if len(self._avoided) > GROWTH * len(self._bad):
            weights = np.append(self._weights, np.ones(len(self._avoided)))
            self._learn_bad(np.vstack([self._bad, *self._avoided]), weights)
            return
        for members, model in self._models:
            model.avoid(point[members])

    def draw(self, generator: np.random.Generator) -> Callable[[int], float]:
        """A point: the coordinate of a column. A group is drawn when one of it is asked for."""
        drawn: dict[int, list[float]] = {}

        def coordinate(column: int) -> float:
            number, place = self._places[column]
            if number not in drawn:
                drawn[number] = self._models[number][1].draw(generator).tolist()
            return drawn[number][place]

        return coordinate


class Alone:
    """Genes of one kind, each independent of the others: densities in cells."""

    def __init__(self, column: Column, samples: int) -> None:
        self._cells, self._is_ordered = column.size or CELLS, column.is_ordered
        self._ordered_masses = fine_masses if column.size is None else cell_masses
        self._samples = samples

    def learn_good(self, good: Array) -> None:
        """See `Densities`."""
        self._good, _ = self._mixture(good, np.ones(len(good)))
        self._cumulative = np.cumsum(self._good, axis=1)
        self._cumulative /= self._cumulative[:, -1:]

    def learn_bad(self, bad: Array, weights: Array) -> None:
        """See `Densities`."""
        self._bad, self._width = self._mixture(bad, weights)
        self._num_bad = np.count_nonzero(~np.isnan(bad), axis=0)

    def _mixture(self, points: Array, weights: Array) -> tuple[Array, Array]:
        """The mass of every cell up to a factor, shape (genes, cells); and mean bandwidths."""
        counts, widths = np.count_nonzero(~np.isnan(points), axis=0), bandwidths(points)
        if self._is_ordered:  # the prior weighs 1, in the middle and as wide as the range
            middle, whole = np.full(len(counts), 0.5), np.ones(len(counts))
            total = self._ordered_masses(middle, whole, self._cells)
        else:
            total = np.full((len(counts), self._cells), 1.0 / self._cells)
        step = max(1, BLOCK // (len(counts) * self._cells))
        for start in range(0, len(points), step):
            some = slice(start, start + step)
            masses = self._masses(points[some], widths[some], counts)
            total += np.tensordot(weights[some], masses, axes=1)
        return total, mean_bandwidths(widths)

    def _masses(self, points: Array, widths: Array, counts: Cells) -> Array:
        if self._is_ordered:
            return self._ordered_masses(points, widths, self._cells)
        return name_masses(points, counts, self._cells)

    def avoid(self, point: Array) -> None:
        """See `Densities`."""
        self._bad += self._masses(point, self._width, self._num_bad)

    def draw(self, generator: np.random.Generator) -> Array:
        """Coordinates, shape (genes,)."""
        genes = np.arange(len(self._good))
        # Cumulative masses of gene j end at j + 1, so that one sorted row holds them all.
        row = (self._cumulative + genes[:, None]).ravel()
        targets = generator.random((self._samples, len(genes))) + genes
        cells = np.searchsorted(row, targets, side="right") - genes * self._cells
        cells = np.clip(cells, 0, self._cells - 1)
        best = np.argmax(self.ratio()[genes, cells], axis=0)
        return np.asarray((cells[best, genes] + generator.random(len(genes))) / self._cells)

    def ratio(self) -> Array:
        """How much likelier than bad each cell is good, up to a factor for each gene.

        Shape (genes, cells).
        """
        return np.asarray(self._good / self._bad)


class Kernels(NamedTuple):
    """Of a mixture, up to a factor: log densities, as products with a point's features.

    slopes: (kernels, features); constants: (kernels,), with the logarithms of the weights.
    """

    slopes: Array
    constants: Array

    def at(self, features: Array) -> Array:
        """Log densities of all kernels, shape (points, kernels)."""
        return features @ self.slopes.T + self.constants


class Together:
    """Genes whose kernels are products: a kernel's log density is linear in a point's features.

    These are a real gene's coordinate and its square, and an indicator of every value of another:
    so all kernels at all draws are one product of matrices.
    """

    def __init__(self, columns: Sequence[Column], samples: int) -> None:
        self._samples, self._num_genes = samples, len(columns)
        self._reals = [i for i, column in enumerate(columns) if column.size is None]
        by_kind: dict[tuple[int, bool], list[int]] = {}
        for i, column in enumerate(columns):
            if column.size is not None:
                by_kind.setdefault((column.size, column.is_ordered), []).append(i)
        self._by_kind = by_kind
        self._listed = [i for members in by_kind.values() for i in members]
        self._sizes = np.array([columns[i].size for i in self._listed], dtype=np.int64)
        self._ends = np.cumsum(self._sizes)

    def learn_good(self, good: Array) -> None:
        """See `Densities`."""
        good = good[~np.isnan(good).any(axis=1)]
        self._centres, self._widths, self._table = self._mixture(good, bandwidths(good))
        ones = np.ones(len(good) + 1)
        self._good = self._kernels(self._centres, self._widths, self._table, ones)
        self._reach = truncated_mass(self._centres[:, self._reals], self._widths[:, self._reals])

    def learn_bad(self, bad: Array, weights: Array) -> None:
        """See `Densities`."""
        has_group = ~np.isnan(bad).any(axis=1)
        bad, widths = bad[has_group], bandwidths(bad[has_group])
        self._bad = self._kernels(*self._mixture(bad, widths), np.append(weights[has_group], 1.0))
        self._width, self._num_bad = mean_bandwidths(widths)[None], len(bad)
        self._avoided: list[Kernels] = []

    def _mixture(self, points: Array, widths: Array) -> tuple[Array, Array, Array]:
        """Kernels' centres, bandwidths and masses; the last is the prior."""
        middle = np.full((1, self._num_genes), 0.5)
        table = np.vstack([self._masses(points, widths, len(points)), self._prior()])
        return np.vstack([points, middle]), np.vstack([widths, np.ones_like(middle)]), table

    def _masses(self, points: Array, widths: Array, count: int) -> Array:
        """Each kernel's mass on every value of every listed gene, shape (points, values)."""
        parts = [np.empty((len(points), 0))]
        for (size, is_ordered), members in self._by_kind.items():
            if is_ordered:
                masses = cell_masses(points[:, members], widths[:, members], size)
            else:
                masses = name_masses(points[:, members], np.full(len(members), count), size)
            parts.append(masses.reshape(len(points), size * len(members)))
        return np.hstack(parts)

    def _prior(self) -> Array:
        """The same of the prior, which is in the middle, and as wide as the range."""
        parts = [np.empty(0)]
        for (size, is_ordered), members in self._by_kind.items():
            even = np.full(size, 1.0 / size)
            one = cell_masses(np.array(0.5), np.array(1.0), size) if is_ordered else even
            parts += [one] * len(members)
        return np.concatenate(parts)

    def _kernels(self, points: Array, widths: Array, table: Array, weights: Array) -> Kernels:
        centres, spreads = points[:, self._reals], widths[:, self._reals]
        _, within = truncated_mass(centres, spreads)
        precise = 0.5 / spreads**2
        slopes = [2.0 * precise * centres, -precise, np.log(np.maximum(table, TINY))]
        constants = np.log(weights) - (precise * centres**2 + np.log(spreads * within)).sum(axis=1)
        return Kernels(np.hstack(slopes), constants)

    def avoid(self, point: Array) -> None:
        """See `Densities`."""
        if np.isnan(point).any():
            return
        table = self._masses(point[None], self._width, self._num_bad)
        self._avoided.append(self._kernels(point[None], self._width, table, np.ones(1)))

    def draw(self, generator: np.random.Generator) -> Array:
        """Coordinates, shape (genes,)."""
        chosen = generator.integers(len(self._centres), size=self._samples)
        reals = self._drawn_reals(chosen, generator)
        cells = self._drawn_cells(chosen, generator)
        best = int(np.argmax(self.log_ratio(reals, cells)))
        point = np.empty(self._num_genes)
        point[self._reals], point[self._listed] = reals[best], (cells[best] + 0.5) / self._sizes
        return point

    def log_ratio(self, reals: Array, cells: Cells) -> Array:
        """How much likelier than bad points are good, as a logarithm, up to a constant.

        reals: coordinates of the real genes, (points, reals); cells: numbers of the others' values,
        (points, others), gene after gene of one kind, kind after kind. Shape (points,).
        """
        is_value = np.zeros((len(cells), int(self._sizes.sum())))
        is_value[np.arange(len(cells))[:, None], self._ends - self._sizes + cells] = 1.0
        features = np.hstack([reals, reals**2, is_value])
        bad = [self._bad.at(features)]
        if self._avoided:
            bad.append(Kernels(*map(np.concatenate, zip(*self._avoided, strict=True))).at(features))
        return _log_sum(self._good.at(features)) - _log_sum(np.hstack(bad))

    def _drawn_reals(self, chosen: Cells, generator: np.random.Generator) -> Array:
        """From truncated normal distributions, by their quantiles; shape (draws, reals)."""
        from scipy.special import ndtri

        below, within = (part[chosen] for part in self._reach)
        quantiles = below + generator.random(within.shape) * within
        centres = self._centres[chosen[:, None], self._reals]
        spreads = self._widths[chosen[:, None], self._reals]
        return np.asarray(np.clip(centres + spreads * ndtri(quantiles), 0.0, 1.0))

    def _drawn_cells(self, chosen: Cells, generator: np.random.Generator) -> Cells:
        """Of the listed genes, as numbers of values; shape (draws, listed)."""
        shape = len(chosen), len(self._listed)
        # All values of all draws are one sorted row: gene j of draw i ends at i * genes + j + 1.
        row = np.cumsum(self._table[chosen], axis=1) + shape[1] * np.arange(shape[0])[:, None]
        targets = generator.random(shape) + np.arange(shape[0] * shape[1]).reshape(shape)
        found = np.searchsorted(row.ravel(), targets, side="right")
        found -= np.arange(shape[0])[:, None] * self._table.shape[1] + self._ends - self._sizes
        return np.clip(found, 0, self._sizes - 1)


def _log_sum(each: Array) -> Array:
    """The logarithms of sums along the last axis."""
    top = each.max(axis=-1, keepdims=True)
    return np.asarray(top[..., 0] + np.log(np.exp(each - top).sum(axis=-1)))
