"""NSGA-II, from pymoo: several objectives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from evomerge.protocols import SearchSpace
from evomerge.records import Evaluation, Facts, Genome
from evomerge.searchers.generation import Generations
from evomerge.searchers.genetic import GeneticPopulation
from evomerge.searchers.options import read_options
from evomerge.searchers.steady import Stream
from evomerge.searchers.variation import VariationOptions, operators


class Nsga2:
    """NSGA-II in the unit cube.

    Deb, Pratap, Agarwal & Meyarivan, A Fast and Elitist Multiobjective Genetic Algorithm: NSGA-II,
    IEEE Transactions on Evolutionary Computation 6 (2002). How failures, races and violations are
    compared, and what the first generation is, says genetic.py; how genes of each type vary,
    variation.py.

    With `steady` every candidate is judged by itself, against the living, as soon as it is told
    ((mu + 1)-NSGA-II: Durillo, Nebro, Luna & Alba, On the Effect of the Steady-State Selection
    Scheme in Multi-Objective Genetic Algorithms, EMO 2009): nobody waits for a generation's last.
    Candidate i is bred as soon as number i - `ahead` is told, and knows of none after that one.
    """

    kind: ClassVar[str] = "nsga2"
    summary: ClassVar[str] = "NSGA-II: two or three objectives, a front in one run; one works too"
    multi_objective: bool = True
    asks_designs: bool = True
    needs: frozenset[str] = frozenset({"genes"})
    resumes_on_drift: bool = True

    class Options(VariationOptions):
        """Options of `nsga2`."""

        population: int = Field(32, ge=2, le=100_000, description="candidates a generation")
        steady: bool = Field(
            False, description="take in each candidate by itself, instead of whole generations"
        )
        ahead: int | None = Field(
            None,
            ge=1,
            le=100_000,
            description="steady: candidates that are outstanding at most; default the population",
        )

    def __init__(self, space: SearchSpace, seed: int, facts: Facts, **options: Any) -> None:
        self.options = read_options(self.Options, options, self.kind)
        self.population = self.in_flight = size = self.options.population

        def make(first: NDArray[np.float64], generator: np.random.Generator) -> Any:
            from pymoo.algorithms.moo.nsga2 import NSGA2

            return NSGA2(
                pop_size=size,
                sampling=first,
                seed=generator,
                **operators(space, self.options),
            )

        self._living = GeneticPopulation(make, size, space, seed, facts)
        self._calls: Generations | Stream = Generations(self._living)
        if self.options.steady:
            self.population, self.in_flight = 1, self.options.ahead or size
            self._calls = Stream(self._living, self.in_flight)

    def ask(self, count: int) -> list[Genome]:
        """At most `count` genomes; empty while those before them have to be told."""
        return self._calls.ask(count)

    def tell(self, evaluations: Sequence[Evaluation]) -> None:
        """Gather evaluations until a generation is whole; or take in each, if steady."""
        self._calls.tell(evaluations)

    def recommend(self) -> Genome | None:
        """None: the front is made of candidates."""
        return None
