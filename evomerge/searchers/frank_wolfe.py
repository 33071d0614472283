"""Frank-Wolfe without gradients: from one merge towards the expert that helps most."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from evomerge.errors import ConfigurationError, Problem
from evomerge.protocols import SearchSpace
from evomerge.records import Evaluation, Facts, Genome
from evomerge.searchers.charts import base_genome
from evomerge.searchers.compositions import read_experts
from evomerge.searchers.generation import Generations
from evomerge.searchers.options import StrictOptions, read_options
from evomerge.searchers.order import is_scored, order_key


class FrankWolfe:
    """Frank-Wolfe over the experts' convex hull, by finite differences of scores.

    Chen et al. 2025, FW-Merging, arXiv:2503.12649: the merge W moves towards the expert s that a
    linear approximation prefers, W + gamma (s - W) with gamma = 2 / (t + 2). There the gradient
    chooses s; here W + eps (s - W) is measured for every s, and the best is chosen. One iteration
    (W itself, then a probe for each expert) is asked and told together, so that all its candidates
    answer the same items and noise that they share falls away; scores of different iterations are
    never compared. gamma is multiplied by `step_size`: the first step would jump to an expert.

    Where no probe has a score, W stays. W is always in the hull of the experts, and of its start.
    It ends after `iterations`, or never. No random choice, so that seeds do not differ. A warm
    start is ignored; scores that are told again after their iteration change nothing.
    """

    kind: ClassVar[str] = "frank_wolfe"
    summary: ClassVar[str] = "Frank-Wolfe without gradients, within the experts' convex hull"
    multi_objective: bool = False
    needs: frozenset[str] = frozenset({"genes", "reals", "experts"})
    resumes_on_drift: bool = True

    class Options(StrictOptions):
        """Options of `frank_wolfe`."""

        start: Literal["uniform", "base"] = Field(
            "uniform", description="first merge: the experts' mean, or the base"
        )
        eps: float = Field(
            0.1,
            gt=0,
            le=1,
            description="how far towards each expert is probed, as a share of the way; larger for "
            "noisier scores",
        )
        step_size: float = Field(
            0.5, gt=0, le=1, description="times 2 / (t + 2): the share of the way that is gone"
        )
        iterations: int | None = Field(
            None, ge=1, le=1_000_000, description="iterations until it ends; default: never"
        )

    def __init__(self, space: SearchSpace, seed: int, facts: Facts, **options: Any) -> None:
        del seed
        self.options = read_options(self.Options, options, self.kind)
        self._experts = read_experts(facts, len(space.genes))
        self._merge = self._first_merge(space)
        self._iteration = 0
        self.population = self.in_flight = 1 + len(self._experts)
        self._generations = Generations(self)

    def ask(self, count: int) -> list[Genome]:
        """At most `count` genomes; empty while the rest of an iteration is outstanding."""
        return self._generations.ask(count)

    def tell(self, evaluations: Sequence[Evaluation]) -> None:
        """Gather evaluations until an iteration is whole."""
        self._generations.tell(evaluations)

    def recommend(self) -> Genome | None:
        """The merge as far as it has come."""
        genome: Genome = self._merge.tolist()
        return genome if self._iteration else None

    def breed(self) -> list[Genome]:
        """The merge and its probes (see `Breeder`)."""
        if self.options.iterations is not None and self._iteration >= self.options.iterations:
            return []
        probes = _towards(self._merge, self._experts, self.options.eps)
        genomes: list[Genome] = np.vstack([self._merge, probes]).tolist()
        return genomes

    def learn(self, generation: list[Evaluation]) -> None:
        """A step towards the expert whose probe is best (see `Breeder`)."""
        self._merge = np.clip(np.asarray(generation[0].genome, dtype=np.float64), 0.0, 1.0)
        probes = generation[1:]
        alive = [i for i, evaluation in enumerate(probes) if is_scored(evaluation)]
        if alive:
            best = min(alive, key=lambda i: order_key(probes[i]))
            gamma = self.options.step_size * 2 / (self._iteration + 2)
            self._merge = _towards(self._merge, self._experts[best], gamma)
        self._iteration += 1

    def relearn(self, evaluations: list[Evaluation]) -> None:
        """Nothing: the step is gone (see `Breeder`)."""

    def _first_merge(self, space: SearchSpace) -> NDArray[np.float64]:
        """Where it starts, shape (genes,).

        Raises:
            ConfigurationError: it should start at the base, and a gene cannot be 0.
        """
        if self.options.start == "uniform":
            return np.asarray(self._experts.mean(axis=0))
        base = base_genome(space.genes)
        if base is None:
            raise ConfigurationError(
                Problem(
                    "searcher.start (frank_wolfe)",
                    "the base is where every gene is 0, and a gene of this space cannot be",
                    "use start: uniform",
                )
            )
        return base


def _towards(
    start: NDArray[np.float64], end: NDArray[np.float64], share: float
) -> NDArray[np.float64]:
    """So far from one point to another; never outside of the cube by rounding."""
    return np.clip(start + share * (end - start), 0.0, 1.0)
