"""Parts of the cube in coordinates of their own: all of it, or what some experts' shares span."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from evomerge.genes import Gene, Real
from evomerge.records import Genome

Array = NDArray[np.float64]

NEAR = 1e-6  # of the cube's side: a genome that is no farther from a chart lies on it


@dataclass(frozen=True)
class Chart:
    """Genomes as offset + coordinates x axes, with coordinates in [0, 1].

    offset: (genes,); axes: (dimensions, genes), independent.
    """

    offset: Array
    axes: Array

    @property
    def dimensions(self) -> int:
        """How many coordinates there are."""
        return len(self.axes)

    def genomes(self, points: Array) -> list[Genome]:
        """Genomes of points, shape (points, dimensions), as far as they lie in the cube."""
        found: list[Genome] = np.clip(self.offset + points @ self.axes, 0.0, 1.0).tolist()
        return found

    def points(self, genomes: Array) -> tuple[Array, NDArray[np.bool_]]:
        """The points nearest to genomes, and which genomes are exactly there."""
        points = np.clip((genomes - self.offset) @ self._inverse, 0.0, 1.0)
        back = self.offset + points @ self.axes
        return points, np.abs(back - genomes).max(axis=1, initial=0.0) <= NEAR

    @cached_property
    def _inverse(self) -> Array:
        return np.asarray(np.linalg.pinv(self.axes))


def whole_cube(num_genes: int) -> Chart:
    """Every gene is its own coordinate."""
    return Chart(np.zeros(num_genes), np.eye(num_genes))


def base_genome(genes: Sequence[Gene]) -> Array | None:
    """Where every gene has the value 0, which is the base for coefficients; None if one cannot."""
    found = []
    for gene in genes:
        if not isinstance(gene, Real) or gene.log or not gene.low <= 0 <= gene.high:
            return None
        found.append(-gene.low / (gene.high - gene.low))
    return np.array(found)


def farthest(offset: Array, direction: Array) -> Array:
    """The longest multiple of a direction that an offset in the cube can be moved by; (genes,)."""
    moved = np.abs(direction) > NEAR
    room = np.where(direction > 0, 1.0 - offset, offset)[moved] / np.abs(direction)[moved]
    return direction * float(room.min())


def shares(base: Array, experts: Sequence[Genome]) -> list[Array] | str:
    """For each expert the way from the base to it and beyond, as far as the cube allows.

    Returns:
        A list of (genes,), or why there is none: every gene may matter to one expert alone.
    """
    directions = np.asarray(experts, dtype=np.float64) - base
    owners = (np.abs(directions) > NEAR).sum(axis=0)
    if (owners > 1).any():
        return f"gene {int(np.argmax(owners > 1))} differs from the base in several experts"
    if not (np.abs(directions) > NEAR).any(axis=1).all():
        return "one of the experts alone is the base"
    return [farthest(base, direction) for direction in directions]


def single_genes(base: Array) -> list[Array]:
    """For each gene the way from the base to its farther end."""
    signs = np.where(base > 0.5, -1.0, 1.0)
    return [farthest(base, row) for row in np.diag(signs)]
