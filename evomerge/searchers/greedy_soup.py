"""Greedy soup: experts are averaged one after the other, as long as it does no harm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from evomerge.errors import ConfigurationError, Problem
from evomerge.protocols import SearchSpace
from evomerge.records import CandidateId, Evaluation, Facts, Genome
from evomerge.searchers.compositions import cosine, genome_of, read_experts, read_gram
from evomerge.searchers.generation import Generations
from evomerge.searchers.options import StrictOptions, read_options
from evomerge.searchers.order import is_scored, order_key


class GreedySoup:
    """Greedy soup over experts, in a space where averages of genomes are averages of models.

    Wortsman et al. 2022, Model soups, arXiv:2203.05482, Recipe 1: the experts are measured, then
    tried from the best to the worst, and each whose uniform average with the soup scores no less
    than the soup is kept. With `order: cosine` the next is always the one whose task vector is the
    most similar to the soup's, as in Model-GLUE (Zhao et al. 2024, arXiv:2410.05357), from the best
    expert on. One candidate at a time; finished after its passes. Not a random choice in it, so
    that seeds do not differ.

    Scores that are told again replace the old ones, and the soup is compared by its latest score.
    A candidate that racing dropped earlier than the soup is worse than it. An expert without a
    score is left out. A warm start is ignored: its scores may rest on other items.
    """

    kind: ClassVar[str] = "greedy_soup"
    summary: ClassVar[str] = "greedy soup: averages experts while it does no harm; ends by itself"
    multi_objective: bool = False
    needs: frozenset[str] = frozenset({"genes", "reals", "experts"})
    resumes_on_drift: bool = True

    class Options(StrictOptions):
        """Options of `greedy_soup`."""

        order: Literal["score", "cosine"] = Field(
            "score",
            description="who is tried next: the best alone, or whose task vector is the most "
            "similar to the soup's",
        )
        passes: int = Field(
            1,
            ge=1,
            le=1000,
            description="how often those that were left out are tried; it ends before where a pass "
            "took nobody",
        )

    def __init__(self, space: SearchSpace, seed: int, facts: Facts, **options: Any) -> None:
        del seed
        self.options = read_options(self.Options, options, self.kind)
        self._experts = read_experts(facts, len(space.genes))
        self._gram: NDArray[np.float64] | None = None
        if self.options.order == "cosine":
            if not facts.gram:
                raise ConfigurationError(
                    Problem(
                        "searcher.order (greedy_soup)",
                        "nobody knows how similar the experts' task vectors are here",
                        "use order: score",
                    )
                )
            self._gram = read_gram(facts)
        self.population = self.in_flight = len(self._experts)
        self._alone: list[CandidateId] = []  # of each expert
        self._evaluations: dict[CandidateId, Evaluation] = {}
        self._soup: list[int] = []  # experts in it
        self._soup_id: CandidateId = -1
        self._left: list[int] = []  # not tried in this pass
        self._rejected: list[int] = []
        self._took_some = False  # in this pass
        self._tried: int | None = None
        self._passes_left = self.options.passes - 1
        self._generations = Generations(self)

    def ask(self, count: int) -> list[Genome]:
        """The experts, then one soup at a time; empty while one is outstanding, or at the end."""
        return self._generations.ask(count)

    def tell(self, evaluations: Sequence[Evaluation]) -> None:
        """Take in the experts' scores, or a soup's."""
        self._generations.tell(evaluations)

    def recommend(self) -> Genome | None:
        """The soup."""
        return self._genome(self._soup) if self._soup else None

    def breed(self) -> list[Genome]:
        """The experts, or the soup with one more (see `Breeder`)."""
        if not self._alone:
            return [expert.tolist() for expert in self._experts]
        if not self._left and self._took_some and self._passes_left > 0:
            self._passes_left -= 1
            self._took_some = False
            self._left, self._rejected = self._rejected, []
        if not self._left or not self._soup:
            return []
        self._tried = min(self._left, key=self._turn)
        return [self._genome([*self._soup, self._tried])]

    def learn(self, generation: list[Evaluation]) -> None:
        """Begin with the best expert; later keep who does no harm (see `Breeder`)."""
        self.relearn(generation)
        if not self._alone:
            self._alone = [evaluation.id for evaluation in generation]
            alive = [i for i, evaluation in enumerate(generation) if is_scored(evaluation)]
            if alive:
                best = min(alive, key=lambda i: order_key(generation[i]))
                self._soup, self._soup_id = [best], generation[best].id
                self._left = [i for i in alive if i != best]
            return
        tried, self._tried = self._tried, None
        if tried is None:
            return
        self._left.remove(tried)
        if self._no_worse(generation[0]):
            self._soup.append(tried)
            self._soup_id = generation[0].id
            self._took_some = True
        else:
            self._rejected.append(tried)

    def relearn(self, evaluations: list[Evaluation]) -> None:
        """New scores replace the old ones (see `Breeder`)."""
        self._evaluations.update((evaluation.id, evaluation) for evaluation in evaluations)

    def _no_worse(self, evaluation: Evaluation) -> bool:
        """Whether a candidate is at least as good as the soup, by violation, rung and value."""
        return order_key(evaluation)[:4] <= order_key(self._evaluations[self._soup_id])[:4]

    def _turn(self, expert: int) -> tuple[object, ...]:
        """The smallest is tried next."""
        if self._gram is None:
            return order_key(self._evaluations[self._alone[expert]])
        alone = np.eye(len(self._experts))[expert]
        return -cosine(self._gram, alone, self._weights(self._soup)), expert

    def _weights(self, soup: list[int]) -> NDArray[np.float64]:
        """The share of each expert in a soup."""
        return np.asarray(np.bincount(soup, minlength=len(self._experts)) / len(soup))

    def _genome(self, soup: list[int]) -> Genome:
        return genome_of(self._experts, self._weights(soup))
