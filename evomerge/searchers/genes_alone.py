"""Parzen densities of genes that are modelled one by one: in cells."""

from __future__ import annotations

import numpy as np

from evomerge.searchers.kernels import (
    BLOCK,
    CELLS,
    Array,
    Cells,
    Column,
    bandwidths,
    cell_masses,
    mean_bandwidths,
    name_masses,
    recency,
)


class Alone:
    """Genes of one kind, each independent of the others: densities in cells."""

    def __init__(self, column: Column, samples: int) -> None:
        self._cells, self._is_ordered = column.size or CELLS, column.is_ordered
        self._samples = samples

    def learn_good(self, good: Array) -> None:
        """See `Densities`."""
        self._good, _ = self._mixture(good, np.where(np.isnan(good), 0.0, 1.0))
        self._cumulative = np.cumsum(self._good, axis=1)
        self._cumulative /= self._cumulative[:, -1:]

    def learn_bad(self, bad: Array) -> None:
        """See `Densities`."""
        self._bad, self._width = self._mixture(bad, recency(bad))
        self._num_bad = np.count_nonzero(~np.isnan(bad), axis=0)

    def _mixture(self, points: Array, weights: Array) -> tuple[Array, Array]:
        """The mass of every cell up to a factor, shape (genes, cells); and mean bandwidths."""
        counts, widths = np.count_nonzero(~np.isnan(points), axis=0), bandwidths(points)
        # The prior weighs 1: in the middle and as wide as the range, or the same for all names.
        total = np.full((len(counts), self._cells), 1.0 / self._cells)
        if self._is_ordered:
            total[:] = cell_masses(np.array(0.5), np.array(1.0), self._cells)
        step = max(1, BLOCK // (len(counts) * self._cells))
        for start in range(0, len(points), step):
            some = slice(start, start + step)
            masses = self._masses(points[some], widths[some], counts)
            total += np.einsum("ij,ijk->jk", weights[some], masses)
        return total, mean_bandwidths(widths)

    def _masses(self, points: Array, widths: Array, counts: Cells) -> Array:
        if self._is_ordered:
            return cell_masses(points, widths, self._cells)
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
