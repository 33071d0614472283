"""Scrambled Sobol points, from scipy: random search that leaves no gaps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from evomerge.errors import ConfigurationError, Problem
from evomerge.protocols import SearchSpace
from evomerge.records import Evaluation, Facts, Genome
from evomerge.searchers.generation import read_designs
from evomerge.searchers.options import StrictOptions, read_options

MOST_DIMENSIONS = 21201  # for so many are there direction numbers


class SobolSearch:
    """A scrambled Sobol sequence in the cube of genes; the stream is the same whatever the batches.

    Sobol, USSR Computational Mathematics and Mathematical Physics 7 (1967); scrambled as in
    Matousek, Journal of Complexity 14 (1998); direction numbers of Joe & Kuo 2008, for at most
    21201 genes. It has 2^30 points. The balance is best after 2^n candidates. Like `random` it does
    not ask for the designs in the facts unless told to: a baseline should know nothing.
    """

    kind: ClassVar[str] = "sobol"
    summary: ClassVar[str] = "evenly spread points, a better baseline; any number of objectives"
    multi_objective: bool = True
    asks_designs: bool = True
    needs: frozenset[str] = frozenset({"genes"})
    resumes_on_drift: bool = True

    class Options(StrictOptions):
        """Options of `sobol`."""

        population: int = Field(
            16, ge=1, le=100_000, description="candidates asked for together; changes no genome"
        )
        designs: bool = Field(
            False, description="whether the space's designs (each expert alone, ...) come first"
        )

    def __init__(self, space: SearchSpace, seed: int, facts: Facts, **options: Any) -> None:
        self.options = read_options(self.Options, options, self.kind)
        self.population = self.options.population
        self.in_flight = 2 * self.population  # nothing waits for anything
        designs = facts.designs if self.options.designs else facts.given
        self._designs: list[Genome] = read_designs(designs, len(space.genes)).tolist()
        self._points = SobolPoints(len(space.genes), np.random.SeedSequence(seed))

    def ask(self, count: int) -> list[Genome]:
        """Always `count` genomes."""
        count = max(count, 0)
        first, self._designs = self._designs[:count], self._designs[count:]
        points: list[Genome] = self._points.next(count - len(first)).tolist()
        return first + points

    def tell(self, evaluations: Sequence[Evaluation]) -> None:
        """Learn nothing."""

    def recommend(self) -> Genome | None:
        """None: it believes in nothing but its candidates."""
        return None


class SobolPoints:
    """The points of a scrambled Sobol sequence, one after the other.

    Raises:
        ConfigurationError: there are no direction numbers for so many dimensions.
    """

    def __init__(self, num_dimensions: int, seed: np.random.SeedSequence) -> None:
        from scipy.stats import qmc

        if num_dimensions > MOST_DIMENSIONS:
            raise ConfigurationError(
                Problem(
                    "searcher.kind (sobol)",
                    f"expected at most {MOST_DIMENSIONS} genes, got {num_dimensions}",
                    "searcher: random has no such limit",
                )
            )
        self._engine = qmc.Sobol(num_dimensions, scramble=True, seed=np.random.default_rng(seed))

    def next(self, count: int) -> NDArray[np.float64]:
        """The next points, shape (count, num_dimensions)."""
        pieces = [np.empty((0, self._engine.d))]
        if count and not self._engine.num_generated:
            # scipy warns of a first piece that is no power of two; one point is one.
            pieces.append(self._engine.random(1))
            count -= 1
        if count:
            pieces.append(self._engine.random(count))
        points: NDArray[np.float64] = np.vstack(pieces)
        return points
