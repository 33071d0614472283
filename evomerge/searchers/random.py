"""Uniform random search: the baseline that a searcher has to beat."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from evomerge.protocols import SearchSpace
from evomerge.records import Evaluation, Facts, Genome
from evomerge.searchers.options import StrictOptions, read_options


class RandomSearch:
    """Random genomes, uniform in the cube of genes; the stream is the same whatever the batches.

    The designs in the facts are not asked for: a baseline should know nothing. Bergstra & Bengio,
    Random Search for Hyper-Parameter Optimization, JMLR 13 (2012).
    """

    kind: ClassVar[str] = "random"
    summary: ClassVar[str] = "uniform random genomes, the baseline; any number of objectives"
    multi_objective: bool = True
    needs: frozenset[str] = frozenset()
    resumes_on_drift: bool = True

    class Options(StrictOptions):
        """Options of `random`."""

        population: int = Field(
            16, ge=1, le=100_000, description="candidates asked for together; changes no genome"
        )

    def __init__(self, space: SearchSpace, seed: int, facts: Facts, **options: Any) -> None:
        del facts
        self.options = read_options(self.Options, options, self.kind)
        self.population = self.options.population
        self.in_flight = 2 * self.population  # nothing waits for anything
        self._space = space
        self._generator = np.random.default_rng(np.random.SeedSequence(seed))

    def ask(self, count: int) -> list[Genome]:
        """Always `count` genomes: random search is never finished."""
        return [self._space.sample(self._generator) for _ in range(max(count, 0))]

    def tell(self, evaluations: Sequence[Evaluation]) -> None:
        """Learn nothing."""

    def recommend(self) -> Genome | None:
        """None: it believes in nothing but its candidates."""
        return None
