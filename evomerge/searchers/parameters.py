"""Genomes as the typed values of genes, for searchers that model values rather than coordinates."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from evomerge.genes import Choice, Condition, Count, Flag, num_options
from evomerge.protocols import SearchSpace
from evomerge.records import Genome

INACTIVE = 0.5  # where a gene stands that does not matter
SET, UNSET = 0.75, 0.25  # where a flag stands

Suggest = Callable[[int], "float | int"]  # the place of a gene -> what it is given


class Parameters:
    """Reads and writes genomes gene by gene, in an order in which it is known who matters.

    A real gene is given as its coordinate in [0, 1], on which a logarithmic scale is even; any
    other as the number of its value, from 0. A gene that has a condition comes after those that it
    asks, and genes which a constraint binds come first and always, since what each of them means
    hangs on the others. Of flags that are counted, the values are those that the constraint leaves.
    """

    def __init__(self, space: SearchSpace) -> None:
        self.genes = space.genes
        self.sizes = [num_options(gene) for gene in self.genes]
        self.names = [gene.name for gene in self.genes]
        self.unordered = [isinstance(gene, Choice | Flag) for gene in self.genes]
        self._active = space.active
        place = {gene.name: i for i, gene in enumerate(self.genes)}
        self._bound = {place[name] for c in space.constraints for name in c.genes}
        self._counts = [
            (c, [place[name] for name in c.genes])
            for c in space.constraints
            if isinstance(c, Count)
        ]
        levels: list[int] = []
        for i, gene in enumerate(self.genes):
            asked = () if gene.when is None or i in self._bound else gene.when.genes
            levels.append(1 + max((levels[place[name]] for name in asked), default=-1))
        self._levels = [
            [i for i, level in enumerate(levels) if level == number]
            for number in range(max(levels, default=-1) + 1)
        ]

    @property
    def is_finite(self) -> bool:
        """Whether there are finitely many genomes."""
        return None not in self.sizes

    def groups(self) -> list[list[int]]:
        """The places of genes that matter together: those that share a condition, or have none."""
        groups: dict[Condition | None, list[int]] = {}
        for i, gene in enumerate(self.genes):
            groups.setdefault(None if i in self._bound else gene.when, []).append(i)
        return list(groups.values())

    def active(self, genome: Genome) -> list[bool]:
        """Which genes are read and written where the genome stands."""
        active = self._active(genome)
        return [active[i] or i in self._bound for i in range(len(active))]

    def read(self, genome: Genome) -> list[float | int]:
        """What every gene has, of inactive ones what stands in the middle."""
        return self._read(genome, self.active(genome))

    def _read(self, genome: Genome, active: Sequence[bool]) -> list[float | int]:
        point = np.clip(np.where(active, genome, INACTIVE), 0.0, 1.0).tolist()
        for constraint, members in self._counts:
            _keep(constraint, members, point)
        return [
            coordinate if size is None else min(int(coordinate * size), size - 1)
            for coordinate, size in zip(point, self.sizes, strict=True)
        ]

    def coordinates(self, genome: Genome) -> NDArray[np.float64]:
        """The same as coordinates in [0, 1], values in the middle of their cells, inactive NaN."""
        active = self.active(genome)
        values = zip(self._read(genome, active), self.sizes, strict=True)
        point = np.array([v if size is None else (v + 0.5) / size for v, size in values])
        return np.where(active, point, np.nan)

    def write(self, suggest: Suggest, generator: np.random.Generator) -> Genome:
        """A genome of what is suggested for the genes that matter; the others in the middle.

        Where too many or too few flags are suggested, chance decides which of them are changed.
        """
        point = [INACTIVE] * len(self.genes)
        for number, members in enumerate(self._levels):
            active = self.active(point) if number else [True] * len(point)
            for i in members:
                if active[i]:
                    size, given = self.sizes[i], suggest(i)
                    point[i] = float(given) if size is None else (given + 0.5) / size
            if number == 0:
                for constraint, flags in self._counts:
                    shaken = generator.uniform(-0.2, 0.2, len(flags))
                    for i, by in zip(flags, shaken.tolist(), strict=True):
                        point[i] += by
                    _keep(constraint, flags, point)
        return point

    def tidy(self, genome: Genome, generator: np.random.Generator) -> Genome:
        """The same merge with every gene in the middle of its cell, where it has cells."""
        values = self.read(genome)
        return self.write(values.__getitem__, generator)


def _keep(constraint: Count, members: Sequence[int], point: list[float]) -> None:
    """Put counted flags where the constraint has them: see `Count`."""
    coordinates = np.array([point[i] for i in members])
    wanted = int(np.clip((coordinates >= 0.5).sum(), constraint.least, constraint.most))
    chosen = set(np.argsort(-coordinates, kind="stable")[:wanted].tolist())
    for number, i in enumerate(members):
        point[i] = SET if number in chosen else UNSET
