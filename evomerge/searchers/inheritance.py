"""How genes that are no real numbers pass from parents to a child."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from evomerge.genes import Gene, num_options

Floats = NDArray[np.float64]


class DiscreteGenes:
    """Those of a space's genes that have a few values; their coordinates are middles of cells.

    A child takes each of them from one of its parents, by chance, and some mutate: to any other
    value with equal probability, for such values have no order that one could rely on. In a space
    without real genes a child that would equal its first parent has one gene mutated, unless every
    gene has but one value.
    """

    def __init__(self, genes: Sequence[Gene], rate: float | None) -> None:
        """`rate`: the share of genes that mutate; by default one gene of a child, on average."""
        self._sizes = np.array([num_options(gene) or 0 for gene in genes])
        self._are_all = bool((self._sizes > 0).all())
        self._where = np.flatnonzero(self._sizes > 1)
        self._rate = 1 / max(len(self._where), 1) if rate is None else rate

    def inherit(
        self, children: Floats, first: Floats, second: Floats, generator: np.random.Generator
    ) -> Floats:
        """Children whose real genes are done, with their other genes from parents.

        All have the shape (children, genes), and so has the result, in the cube.
        """
        children = np.clip(children, 0.0, 1.0)
        where, sizes = self._where, self._sizes[self._where]
        if len(where):
            shape = (len(children), len(where))
            values = self._values(first)
            is_crossed = generator.random(shape) < 0.5
            values = np.where(is_crossed, self._values(second), values)
            mutates = generator.random(shape) < self._rate
            spare = generator.integers(len(where), size=len(children))
            is_clone = (values == self._values(first)).all(axis=1) & ~mutates.any(axis=1)
            rows = np.flatnonzero(is_clone & self._are_all)
            mutates[rows, spare[rows]] = True
            steps = 1 + (generator.random(shape) * (sizes - 1)).astype(np.int64)
            values = np.where(mutates, (values + steps) % sizes, values)
            children[:, where] = (values + 0.5) / sizes
        children[:, self._sizes == 1] = 0.5
        return children

    def snap(self, points: Floats) -> Floats:
        """Points with the coordinates of discrete genes in the middle of their cells."""
        points = points.copy()
        points[:, self._where] = (self._values(points) + 0.5) / self._sizes[self._where]
        return points

    def _values(self, points: Floats) -> NDArray[np.int64]:
        """The number of each gene's value, shape (points, discrete genes)."""
        sizes = self._sizes[self._where]
        values: NDArray[np.int64] = np.minimum(
            (points[:, self._where] * sizes).astype(np.int64), sizes - 1
        )
        return values
