"""Genomes made gene by gene: what there is to choose at each, and what has been chosen.

An episode goes through the genes of a space in their order. A gene whose condition does not hold is
passed by; what would break a constraint is not allowed. So an episode's genome decodes to exactly
what was chosen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from evomerge.genes import (
    KINDS,
    AllDifferent,
    Choice,
    Constraint,
    Count,
    Flag,
    Gene,
    Level,
    Real,
    Value,
    num_options,
)
from evomerge.records import Genome
from evomerge.searchers.ppo import Floats, Steps

PASSED_BY = 0.5  # the coordinate of a gene that does not matter
NO = 0  # the action that leaves a flag unset

# (place, features seen, allowed columns) -> columns; one row for each episode
Policy = Callable[[int, Floats, NDArray[np.bool_]], NDArray[np.intp]]


class Course:
    """What there is to do at each gene, as columns of actions that all genes share.

    Genes of one type with as many options have the same columns: what is learnt of one helps with
    the next. A real gene has `bins` equally spaced coordinates, both ends among them.

    What an episode has seen at a place, beside the place: for every column how often it was taken,
    as a share of the genes that have it, and whether it was the last one taken of its block. That
    is two numbers a column, however many genes there are.
    """

    def __init__(self, genes: Sequence[Gene], constraints: Sequence[Constraint], bins: int) -> None:
        self.genes = tuple(genes)
        self.constraints = tuple(constraints)
        blocks = first_columns(self.genes, bins)
        self.num_columns = num_actions(self.genes, bins)
        self.coordinates: list[NDArray[np.float64]] = []
        self._values: list[Sequence[Value]] = []
        self.starts: list[int] = []
        for gene in self.genes:
            _, size = block = _block(gene, bins)
            self.starts.append(blocks[block])
            self.coordinates.append(_coordinates(gene, size))
            self._values.append(_values(gene, self.coordinates[-1].tolist()))
        self.columns = [
            slice(start, start + len(coordinates))
            for start, coordinates in zip(self.starts, self.coordinates, strict=True)
        ]
        self.possible = np.zeros((len(self.genes), self.num_columns), dtype=bool)
        shares = np.zeros(self.num_columns)
        for place, columns in enumerate(self.columns):
            self.possible[place, columns] = True
            shares[columns] += 1
        self.share = (1 / np.maximum(shares, 1)).astype(np.float32)
        self.num_features = 2 * self.num_columns
        index = {gene.name: place for place, gene in enumerate(self.genes)}
        self.bound: dict[int, int] = {  # place -> number of its constraint
            index[name]: number
            for number, constraint in enumerate(self.constraints)
            for name in constraint.genes
        }
        # With nothing that depends on what was chosen, a place is the same for everybody.
        self.is_free = [g.when is None and i not in self.bound for i, g in enumerate(self.genes)]
        self._asked = {name for g in self.genes if g.when is not None for name in g.when.genes}

    def is_asked(self, place: int) -> bool:
        """Whether a condition asks for this gene."""
        return self.genes[place].name in self._asked

    def value(self, place: int, action: int) -> Value:
        """What a gene is after an action, counted from its first column."""
        return self._values[place][action]

    def walk(self, count: int, policy: Policy) -> tuple[list[Genome], Steps]:
        """So many episodes side by side, with what was seen and done."""
        num_places, num_columns = len(self.genes), self.num_columns
        episodes = [Episode(self) for _ in range(count)]
        seen = np.zeros((count, num_places, self.num_features), dtype=np.float32)
        allowed = np.repeat(self.possible[None], count, axis=0)
        done = np.zeros((count, num_places), dtype=np.intp)
        acted = np.ones((count, num_places), dtype=bool)
        now = np.zeros((count, self.num_features), dtype=np.float32)
        for place, start in enumerate(self.starts):
            seen[:, place] = now
            if not self.is_free[place]:
                for row, episode in enumerate(episodes):
                    acted[row, place] = episode.allow(place, allowed[row, place])
            chosen = policy(place, now, allowed[:, place])
            done[:, place] = chosen
            for row, action in enumerate((chosen - start).tolist()):
                if acted[row, place]:
                    episodes[row].take(place, action)
                else:
                    episodes[row].pass_by(place)
            active = np.flatnonzero(acted[:, place])
            taken = chosen[active]
            block = slice(num_columns + start, num_columns + start + len(self.coordinates[place]))
            now[active, block] = 0
            now[active, taken] += self.share[taken]
            now[active, num_columns + taken] = 1
        return [episode.genome for episode in episodes], Steps(seen, allowed, done, acted)

    def follow(self, genomes: Sequence[Genome]) -> Steps:
        """The episodes that lead to these genomes, or as near to them as there are actions."""
        points = np.clip(np.asarray(genomes, dtype=np.float64), 0.0, 1.0)

        def nearest(place: int, seen: Floats, allowed: NDArray[np.bool_]) -> NDArray[np.intp]:
            del seen
            columns = self.columns[place]
            far = np.abs(points[:, place, None] - self.coordinates[place])
            far[~allowed[:, columns]] = np.inf
            chosen: NDArray[np.intp] = far.argmin(axis=1) + columns.start
            return chosen

        return self.walk(len(points), nearest)[1]


class Episode:
    """One genome in the making."""

    def __init__(self, course: Course) -> None:
        self.genome: list[float] = []
        self._course = course
        self._known: dict[str, Value] = {}  # of active genes that conditions ask for
        self._taken: list[set[int]] = [set() for _ in course.constraints]
        self._num_left = [len(constraint.genes) for constraint in course.constraints]

    def allow(self, place: int, allowed: NDArray[np.bool_]) -> bool:
        """Strike out what would break a constraint; returns whether the gene matters at all."""
        gene = self._course.genes[place]
        if gene.when is not None and not gene.when.holds(self._known):
            return False
        number = self._course.bound.get(place)
        if number is None:
            return True
        constraint, taken = self._course.constraints[number], self._taken[number]
        start = self._course.starts[place]
        if isinstance(constraint, Count):
            if len(taken) >= constraint.most:
                allowed[start + 1] = False
            elif len(taken) + self._num_left[number] <= constraint.least:
                allowed[start + NO] = False
        else:
            allowed[[start + action for action in taken]] = False
        return True

    def take(self, place: int, action: int) -> None:
        """Choose one of a gene's options, counted from its first."""
        course = self._course
        self.genome.append(float(course.coordinates[place][action]))
        if course.is_asked(place):
            self._known[course.genes[place].name] = course.value(place, action)
        if place in course.bound:
            self._bind(course.bound[place], place, action)

    def pass_by(self, place: int) -> None:
        """Leave a gene that does not matter where it is in nobody's way."""
        number = self._course.bound.get(place)
        if number is None:
            self.genome.append(PASSED_BY)
            return
        coordinates = self._course.coordinates[place]
        action = NO
        if isinstance(self._course.constraints[number], AllDifferent):
            # The codec keeps these different too, and would move others out of its way.
            action = len(coordinates) // 2
            while action in self._taken[number]:
                action = (action + 1) % len(coordinates)
        self.genome.append(float(coordinates[action]))
        self._bind(number, place, action)

    def _bind(self, number: int, place: int, action: int) -> None:
        """Remember what a constraint has to know: values that are taken, or flags that are set."""
        self._num_left[number] -= 1
        if isinstance(self._course.constraints[number], AllDifferent):
            self._taken[number].add(action)
        elif action != NO:
            self._taken[number].add(place)


def num_actions(genes: Sequence[Gene], bins: int) -> int:
    """Actions of all genes, where genes of one type and size share theirs."""
    return sum(size for _, size in first_columns(genes, bins))


def first_columns(genes: Sequence[Gene], bins: int) -> dict[tuple[str, int], int]:
    """The first column of each type and size of genes, in the order of the genes."""
    found: dict[tuple[str, int], int] = {}
    end = 0
    for block in (_block(gene, bins) for gene in genes):
        if block not in found:
            found[block] = end
            end += block[1]
    return found


def _block(gene: Gene, bins: int) -> tuple[str, int]:
    return KINDS[type(gene)], num_options(gene) or bins


def _coordinates(gene: Gene, size: int) -> NDArray[np.float64]:
    """Where a gene's options lie."""
    if isinstance(gene, Real):
        return np.linspace(0.0, 1.0, size)
    return (np.arange(size) + 0.5) / size


def _values(gene: Gene, coordinates: Sequence[float]) -> Sequence[Value]:
    """What a gene's options mean, which only conditions ask.

    Those of a real one are rounded as a codec does (search_spaces/codec.py).
    """
    if isinstance(gene, Real):
        return [_real(gene, coordinate) for coordinate in coordinates]
    if isinstance(gene, Level):
        return gene.levels
    if isinstance(gene, Choice):
        return gene.options
    return (False, True) if isinstance(gene, Flag) else range(gene.low, gene.high + 1)


def _real(gene: Real, coordinate: float) -> float:
    if gene.log:
        low, high = math.log(gene.low), math.log(gene.high)
        value = math.exp(low + (high - low) * coordinate)
        value = value if gene.decimals is None else float(f"{value:.{gene.decimals}g}")
    else:
        value = gene.low + (gene.high - gene.low) * coordinate
        if gene.decimals is not None:
            scale = 10.0**gene.decimals
            value = float(np.rint(value * scale) / scale)
    return min(max(value, gene.low), gene.high)
