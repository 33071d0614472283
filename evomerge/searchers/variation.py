"""How genomes are crossed and mutated, by the types of their genes; what pymoo needs for it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from evomerge.protocols import SearchSpace
from evomerge.searchers.cells import categories_of, cells_of, middles, places, snapped
from evomerge.searchers.options import StrictOptions

Points = NDArray[np.float64]


class VariationOptions(StrictOptions):
    """How children are made."""

    crossover_probability: float = Field(
        0.9, ge=0, le=1, description="share of the pairs of parents that are crossed"
    )
    crossover_eta: float = Field(
        15.0, gt=0, description="distribution index: larger keeps children near their parents"
    )
    mutation_eta: float = Field(
        20.0, gt=0, description="distribution index: larger makes smaller mutations"
    )


def operators(space: SearchSpace, options: VariationOptions) -> dict[str, Any]:
    """Crossover and mutation for pymoo.

    Real genes: simulated binary crossover and polynomial mutation (Deb & Agrawal, Complex Systems
    9, 1995). Integers: the same, in the cube; then the middle of the cell, or of the next one where
    a mutation stayed within it. Names and flags: each child takes them from either parent, as
    likely, and a mutation makes another of it, all others as likely. Children of spaces with such
    genes lie in the middles of their cells, so that pymoo's search for duplicates finds those of
    the same values.
    """
    from pymoo.operators.crossover.sbx import SBX
    from pymoo.operators.mutation.pm import PM

    cells, named = cells_of(space), categories_of(space)
    crossover, mutation = SBX, PM
    if cells.any():

        class Crossing(SBX):  # type: ignore[misc]
            def _do(self, problem: Any, parents: Points, *args: Any, **more: Any) -> Points:
                children = super()._do(problem, parents, *args, **more)
                children = np.where(named, exchanged(parents, more["random_state"]), children)
                return snapped(children, cells)

        class Mutation(PM):  # type: ignore[misc]
            def _do(self, problem: Any, points: Points, *args: Any, **more: Any) -> Points:
                moved = super()._do(problem, points, *args, **more)
                moved = np.where(named, renamed(points, cells, more["random_state"]), moved)
                return middles(stepped(points, moved, cells), cells)

        crossover, mutation = Crossing, Mutation
    return {
        "crossover": crossover(prob=options.crossover_probability, eta=options.crossover_eta),
        "mutation": mutation(eta=options.mutation_eta),
    }


def exchanged(parents: Points, generator: np.random.Generator) -> Points:
    """Two children of each pair: each gene of either parent, the other child has the other's.

    parents, result: shape (2, pairs, genes).
    """
    return np.where(generator.random(parents.shape[1:]) < 0.5, parents, parents[::-1])


def renamed(points: Points, cells: NDArray[np.int64], generator: np.random.Generator) -> Points:
    """Points of which about one gene each is in another cell, any of them; shape (n, genes)."""
    numbers = places(points, cells)
    # One of n - 1 others: so many steps onward, in a ring.
    steps = 1 + np.floor(generator.random(points.shape) * np.maximum(cells - 1, 1))
    others = np.where(cells > 1, np.mod(numbers + steps, np.maximum(cells, 1)), numbers)
    is_other = generator.random(points.shape) < min(0.5, 1 / points.shape[1])
    return middles(np.where(is_other, others, numbers), cells)


def stepped(points: Points, moved: Points, cells: NDArray[np.int64]) -> Points:
    """The numbers of the cells of moved points: at least one step on, where they have moved.

    points, moved, result: shape (n, genes).
    """
    before, after = places(points, cells), places(moved, cells)
    short = (cells > 0) & (moved != points) & (before == after)
    return np.where(
        short, np.clip(after + np.sign(moved - points), 0, np.maximum(cells - 1, 0)), after
    )
