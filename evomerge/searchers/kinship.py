"""Merging by kinship: the best are merged with each other, and with who is least related."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from evomerge.protocols import SearchSpace
from evomerge.records import CandidateId, Evaluation, Facts, Genome
from evomerge.searchers.compositions import cosine, genome_of, read_experts, read_gram
from evomerge.searchers.generation import Generations
from evomerge.searchers.options import StrictOptions, read_options
from evomerge.searchers.order import is_scored, order_key

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Member:
    """A merge: what share of it each expert has, shape (experts,)."""

    weights: Array

    @property
    def key(self) -> bytes:
        """What equal merges have in common."""
        return bytes(np.round(self.weights, 9).tobytes())


class Kinship:
    """Top-k greedy merging, with exploration by model kinship.

    Hu et al. 2024, Exploring Model Kinship for Merging Large Language Models, arXiv:2410.12613.
    Kinship is the cosine of two models' task vectors; of merges it follows from the experts' inner
    products. Each round merges every pair of the best k that was not merged before, half and half;
    `strategy: kinship` adds the merge of the best with the least related of all. Pairs more alike
    than `saturation` are left out: merging them changes nothing any more. It is finished when so
    many rounds brought nothing better, or when there is no pair left.

    Departures: the merge is an average of genomes rather than SLERP; in a linear space that is the
    average of models. The paper stops when the mean score of the best k rises no more; here the
    best one counts, as the result is one model. No random choice, so that seeds do not differ. A
    warm start is ignored: its candidates are no merges of known shares.
    """

    kind: ClassVar[str] = "kinship"
    summary: ClassVar[str] = "merges the best with each other and the least related; ends by itself"
    multi_objective: bool = False
    needs: frozenset[str] = frozenset({"genes", "reals", "experts", "gram"})
    resumes_on_drift: bool = True

    class Options(StrictOptions):
        """Options of `kinship`."""

        strategy: Literal["kinship", "greedy"] = Field(
            "kinship", description="greedy: pairs of the best alone, no exploration"
        )
        top_k: int = Field(3, ge=2, le=100, description="how many of the best are merged in pairs")
        patience: int = Field(
            2, ge=1, le=1000, description="rounds without a better candidate until it ends"
        )
        saturation: float = Field(
            0.999,
            gt=-1,
            le=1,
            description="models with a higher kinship are not merged: they are one",
        )

    def __init__(self, space: SearchSpace, seed: int, facts: Facts, **options: Any) -> None:
        del seed
        self.options = read_options(self.Options, options, self.kind)
        self._experts = read_experts(facts, len(space.genes))
        self._gram = read_gram(facts)
        self.population = self.in_flight = len(self._experts)
        self._asked = [Member(row) for row in np.eye(len(self._experts))]
        self._members: dict[CandidateId, Member] = {}
        self._evaluations: dict[CandidateId, Evaluation] = {}
        self._seen = {member.key for member in self._asked}
        self._rounds_in_vain = 0
        self._generations = Generations(self)

    def ask(self, count: int) -> list[Genome]:
        """The experts, then rounds of merges; empty while one is outstanding, or at the end."""
        return self._generations.ask(count)

    def tell(self, evaluations: Sequence[Evaluation]) -> None:
        """Gather evaluations until a round is whole."""
        self._generations.tell(evaluations)

    def recommend(self) -> Genome | None:
        """None: it believes in its best candidate."""
        return None

    def breed(self) -> list[Genome]:
        """The experts, or a round of merges (see `Breeder`)."""
        if self._members:
            if self._rounds_in_vain >= self.options.patience:
                return []
            self._asked = self._merges()
            self._seen.update(member.key for member in self._asked)
        return [genome_of(self._experts, member.weights) for member in self._asked]

    def learn(self, generation: list[Evaluation]) -> None:
        """The round joins the population (see `Breeder`)."""
        before = self._best(1)
        for member, evaluation in zip(self._asked, generation, strict=True):
            self._members[evaluation.id] = member
        self.relearn(generation)
        self._rounds_in_vain = self._rounds_in_vain + 1 if self._best(1) == before else 0

    def relearn(self, evaluations: list[Evaluation]) -> None:
        """New scores replace the old ones (see `Breeder`)."""
        self._evaluations.update((evaluation.id, evaluation) for evaluation in evaluations)

    def _best(self, count: int) -> list[CandidateId]:
        """The best of the population that have a score, best first."""
        alive = [e for i, e in self._evaluations.items() if i in self._members and is_scored(e)]
        return [evaluation.id for evaluation in sorted(alive, key=order_key)[:count]]

    def _merges(self) -> list[Member]:
        """New merges: pairs of the best, then the best with the least related of all."""
        ranked = [self._members[candidate] for candidate in self._best(len(self._members))]
        pairs = [
            pair
            for pair in itertools.combinations(ranked[: self.options.top_k], 2)
            if self._is_worth_it(*pair)
        ]
        if self.options.strategy == "kinship":
            others = [other for other in ranked[1:] if self._is_worth_it(ranked[0], other)]
            if others:
                pairs.append((ranked[0], min(others, key=partial(self._kinship, ranked[0]))))
        return list({child.key: child for child in itertools.starmap(_child, pairs)}.values())

    def _is_worth_it(self, first: Member, second: Member) -> bool:
        """Whether a merge is none that there was, and none of equals."""
        is_new = _child(first, second).key not in self._seen
        return is_new and self._kinship(first, second) <= self.options.saturation

    def _kinship(self, first: Member, second: Member) -> float:
        return cosine(self._gram, first.weights, second.weights)


def _child(first: Member, second: Member) -> Member:
    """Half and half."""
    return Member((first.weights + second.weights) / 2)
