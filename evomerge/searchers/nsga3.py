"""NSGA-III, from pymoo: many objectives, spread along reference directions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from evomerge.errors import ConfigurationError, Problem
from evomerge.protocols import SearchSpace
from evomerge.records import Evaluation, Facts, Genome
from evomerge.searchers.generation import Generations
from evomerge.searchers.genetic import GeneticPopulation
from evomerge.searchers.options import read_options
from evomerge.searchers.variation import VariationOptions, operators

POPULATION = 32  # where neither it nor the directions are given
INNER_SCALE = 0.5  # of the second layer of directions, as in the paper's table I
LAYERED_FROM = 4  # objectives: one layer of so few directions has hardly one inside


class Nsga3:
    """NSGA-III in the unit cube.

    Deb & Jain, An Evolutionary Many-Objective Optimization Algorithm Using Reference-Point-Based
    Nondominated Sorting Approach, Part I, IEEE Transactions on Evolutionary Computation 18 (2014),
    with its reference directions: those of Das & Dennis, and from four objectives on a second,
    inner layer as far as the population allows. How failures, races and violations are compared,
    and what the first generation is, says genetic.py; how genes of each type vary, variation.py.

    Departures: the population may be larger than the number of directions; the best and worst
    values by which objectives are normalised are forgotten when a survivor is scored again.
    """

    kind: ClassVar[str] = "nsga3"
    summary: ClassVar[str] = "NSGA-III: three objectives or more, a front spread by directions"
    multi_objective: bool = True
    asks_designs: bool = True
    needs: frozenset[str] = frozenset({"genes"})
    resumes_on_drift: bool = True

    class Options(VariationOptions):
        """Options of `nsga3`."""

        population: int | None = Field(
            None,
            ge=2,
            le=100_000,
            description="candidates a generation, at least as many as directions; default the "
            f"number of directions where `partitions` is given, else {POPULATION}",
        )
        partitions: int | None = Field(
            None,
            ge=1,
            le=10_000,
            description="equal parts into which directions divide each objective: of p parts and m "
            "objectives there are (p + m - 1)! / p! / (m - 1)! directions; default as many parts "
            "as the population allows",
        )
        crossover_probability: float = Field(
            1.0, ge=0, le=1, description="share of the pairs of parents that are crossed"
        )
        crossover_eta: float = Field(
            30.0, gt=0, description="distribution index: larger keeps children near their parents"
        )

    def __init__(self, space: SearchSpace, seed: int, facts: Facts, **options: Any) -> None:
        self.options = read_options(self.Options, options, self.kind)
        directions = _directions(
            len(facts.objectives), self.options.population, self.options.partitions
        )
        self.population = self.in_flight = self.options.population or (
            len(directions) if self.options.partitions else POPULATION
        )

        def make(first: NDArray[np.float64], generator: np.random.Generator) -> Any:
            from pymoo.algorithms.moo.nsga3 import NSGA3

            return NSGA3(
                ref_dirs=directions,
                pop_size=self.population,
                sampling=first,
                seed=generator,
                **operators(space, self.options),
            )

        self._living = GeneticPopulation(make, self.population, space, seed, facts)
        self._generations = Generations(self._living)

    def ask(self, count: int) -> list[Genome]:
        """At most `count` genomes; empty while the rest of a generation is outstanding."""
        return self._generations.ask(count)

    def tell(self, evaluations: Sequence[Evaluation]) -> None:
        """Gather evaluations until a generation is whole."""
        self._generations.tell(evaluations)

    def recommend(self) -> Genome | None:
        """None: the front is made of candidates."""
        return None


def _directions(
    num_objectives: int, population: int | None, partitions: int | None
) -> NDArray[np.float64]:
    """Reference directions, shape (n, objectives), n at most the population.

    Raises:
        ConfigurationError: the population is smaller than the number of directions.
    """
    from pymoo.util.ref_dirs import get_reference_directions

    room = population or POPULATION
    outer = partitions or _most_partitions(room, num_objectives)
    count = num_directions(outer, num_objectives)
    if count > room and (population is not None or partitions is None):
        raise ConfigurationError(
            Problem(
                "searcher.population (nsga3)",
                f"expected at least the {count} directions of {outer} partitions and "
                f"{num_objectives} objectives, got {room}",
            )
        )
    if num_objectives == 1:
        return np.ones((1, 1))  # as many parts as you like
    known: NDArray[np.float64] = get_reference_directions(
        "das-dennis", num_objectives, n_partitions=outer
    )
    inner = _most_partitions(room - count, num_objectives)
    if partitions is None and num_objectives >= LAYERED_FROM and inner:
        inside = get_reference_directions(
            "das-dennis", num_objectives, n_partitions=inner, scaling=INNER_SCALE
        )
        known = np.vstack([known, inside])
    return known


def num_directions(partitions: int, num_objectives: int) -> int:
    """How many directions Das & Dennis's construction has."""
    return math.comb(partitions + num_objectives - 1, num_objectives - 1)


def _most_partitions(room: int, num_objectives: int) -> int:
    """The most partitions of which there are not more directions than that; at least 0."""
    partitions = 0
    while num_objectives > 1 and num_directions(partitions + 1, num_objectives) <= room:
        partitions += 1
    return partitions
