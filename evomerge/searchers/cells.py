"""Where discrete genes stand in the cube: in cells, of which the middle stands for the whole."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from evomerge.genes import Choice, Count, Flag, num_options
from evomerge.protocols import SearchSpace


def cells_of(space: SearchSpace) -> NDArray[np.int64]:
    """How many cells each gene's side of the cube has, shape (genes,); 0 where any number counts.

    That is so for real genes, and for flags that are counted: of those the highest are set, so that
    all in the middles of their cells would be a tie.
    """
    counted = {name for c in space.constraints if isinstance(c, Count) for name in c.genes}
    return np.array(
        [0 if gene.name in counted else num_options(gene) or 0 for gene in space.genes],
        dtype=np.int64,
    )


def categories_of(space: SearchSpace) -> NDArray[np.bool_]:
    """Which genes with cells have no order among their values, shape (genes,)."""
    named = np.array([isinstance(gene, Choice | Flag) for gene in space.genes], dtype=np.bool_)
    return named & (cells_of(space) > 0)


def places(points: NDArray[np.float64], cells: NDArray[np.int64]) -> NDArray[np.float64]:
    """The number of the cell, from 0, for genes with cells; other coordinates as they are.

    points, result: shape (..., genes).
    """
    number = np.clip(np.floor(points * cells), 0, np.maximum(cells - 1, 0))
    return np.where(cells > 0, number, points)


def middles(numbers: NDArray[np.float64], cells: NDArray[np.int64]) -> NDArray[np.float64]:
    """The inverse of `places`: the middles of cells."""
    return np.where(cells > 0, (numbers + 0.5) / np.maximum(cells, 1), numbers)


def snapped(points: NDArray[np.float64], cells: NDArray[np.int64]) -> NDArray[np.float64]:
    """Points with the same values, in the middles of their cells; shape (..., genes)."""
    return middles(places(points, cells), cells)
