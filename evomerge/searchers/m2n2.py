"""M2N2: descendants of the models, by competition and attraction."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, ClassVar, cast

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from evomerge.protocols import LineageSpace, SearchSpace
from evomerge.records import CandidateId, Evaluation, Facts, Genome
from evomerge.searchers.niche_archive import NicheArchive
from evomerge.searchers.options import StrictOptions, read_options
from evomerge.searchers.order import is_scored, order_key


class M2n2:
    """Model merging of natural niches: a small archive, and one child at a time.

    Abrantes et al., Competition and Attraction Improve Model Fusion, GECCO 2025, arXiv:2508.16204;
    niche_archive.py has the formulas. A child is SLERP_w(p1, p2) left of a split point and
    SLERP_(1-w)(p1, p2) right of it, with w ~ U(0, 1) and the split point uniform. Candidates are
    compared item by item, by the column `score` of all items that the estimator asks. These count
    the same, so that tasks weigh by their numbers of items; objectives are not looked at, and there
    may be any number of them. Who has failed never enters.

    First the designs are asked for (one of each; random lineages where there are fewer than two),
    then the best of a run to go on from, as many as the archive holds: they are measured again,
    because only answers to the same items can be compared. The parents of candidate i are drawn
    from the archive of all candidates up to i - in_flight, however many are told by then, so that
    the stream does not depend on batches; until it knows the designs, they are drawn among these,
    each as likely. `in_flight: 1` is the published algorithm.

    The published mutation, which is for evolving from scratch, is no lineage: evolution.py has it.
    A plain genetic algorithm is `{alpha: 0, attraction: false}`.
    """

    kind: ClassVar[str] = "m2n2"
    summary: ClassVar[str] = "M2N2: lineages that compete for items; any number of objectives"
    multi_objective: bool = True
    asks_designs: bool = True
    needs: frozenset[str] = frozenset({"lineages", "complete_responses"})
    resumes_on_drift: bool = True

    class Options(StrictOptions):
        """Options of `m2n2`."""

        archive: int = Field(15, ge=1, le=10_000, description="members that are kept (P)")
        alpha: float = Field(
            1.0, ge=0, le=4, description="how much members that answer the same item share it"
        )
        attraction: bool = Field(
            True, description="the second parent by what it can do and the first cannot"
        )
        split: bool = Field(True, description="whether children have a split point")
        crossover: bool = Field(
            True, description="without it a child is its first parent, and nothing new is found"
        )
        in_flight: int = Field(
            8,
            ge=1,
            le=100_000,
            description="children at a time: parents are drawn knowing all but the last so many",
        )

    def __init__(self, space: SearchSpace, seed: int, facts: Facts, **options: Any) -> None:
        self.options = read_options(self.Options, options, self.kind)
        self.population = 1
        self.in_flight = self.options.in_flight
        self._space = cast(LineageSpace, space)
        self._seed = seed
        self._seeds = _seeds(space, seed, facts, self.options.archive)
        # Fewer than the seeds, which are one where all models are the same.
        self._num_designs = min(max(len(_different(facts.designs)), 2), len(self._seeds))
        self._archive: NicheArchive[CandidateId] = NicheArchive(
            self.options.archive, self.options.alpha
        )
        self._genomes: dict[CandidateId, Genome] = {}  # of the living
        self._waiting: dict[CandidateId, Evaluation] = {}  # told, and not yet looked at
        self._items: dict[str, NDArray[np.int64]] = {}
        self._num_asked = 0
        self._num_known = 0  # candidates that the archive has seen, in their order

    def ask(self, count: int) -> list[Genome]:
        """At most `count` genomes; none while a candidate is missing that the next one needs."""
        genomes: list[Genome] = []
        while len(genomes) < count and self._knows(self._num_asked - self.in_flight):
            genomes.append(self._genome(self._num_asked))
            self._num_asked += 1
        return genomes

    def tell(self, evaluations: Sequence[Evaluation]) -> None:
        """Keep evaluations until the archive may know them; new scores of the living replace.

        Raises:
            ValueError: a candidate that was not asked for, or with other items than the others.
        """
        for evaluation in evaluations:
            if evaluation.id >= self._num_asked:
                raise ValueError(f"told candidate {evaluation.id}, which was not asked for")
            if evaluation.id >= self._num_known:
                self._waiting[evaluation.id] = evaluation
            elif evaluation.id in self._archive:
                self._rescore(evaluation)

    def recommend(self) -> Genome | None:
        """None: the archive is made of candidates."""
        return None

    def _knows(self, last: CandidateId) -> bool:
        """Put candidates up to this one into the archive; whether all of them are told."""
        while self._num_known <= last and self._num_known in self._waiting:
            evaluation = self._waiting.pop(self._num_known)
            self._num_known += 1
            scores = self._scores(evaluation)
            if scores is None:
                continue
            left = self._archive.insert(evaluation.id, scores)
            self._genomes[evaluation.id] = evaluation.genome
            if left is not None:
                del self._genomes[left]
        return self._num_known > last

    def _rescore(self, evaluation: Evaluation) -> None:
        scores = self._scores(evaluation)
        if scores is None:
            self._archive.remove(evaluation.id)
            del self._genomes[evaluation.id]
        else:
            self._archive.replace(evaluation.id, scores)

    def _genome(self, number: int) -> Genome:
        """A seed, or a child; its random numbers are its own."""
        if number < len(self._seeds):
            return self._seeds[number]
        generator = np.random.default_rng(np.random.SeedSequence([self._seed, number]))
        first, second = self._parents(generator)
        mix, split = float(generator.random()), int(generator.integers(self._space.total))
        if not self.options.crossover:
            return first
        return self._space.cross(
            first, second, mix, split if self.options.split else self._space.total
        )

    def _parents(self, generator: np.random.Generator) -> tuple[Genome, Genome]:
        if self._num_known < self._num_designs or not len(self._archive):
            places = generator.choice(self._num_designs, 2, replace=self._num_designs < 2)
            return self._seeds[places[0]], self._seeds[places[1]]
        first, second = self._archive.parents(generator, self.options.attraction)
        return self._genomes[first], self._genomes[second]

    def _scores(self, evaluation: Evaluation) -> NDArray[np.float64] | None:
        """Its scores of all items, tasks by name; None where it has failed."""
        if not is_scored(evaluation) or evaluation.violation > 0 or not evaluation.responses:
            return None
        responses = dict(sorted(evaluation.responses.items()))
        items = {task: answers.items for task, answers in responses.items()}
        self._items = self._items or items
        if items.keys() != self._items.keys() or not all(
            np.array_equal(items[task], known) for task, known in self._items.items()
        ):
            raise ValueError(f"candidate {evaluation.id} has answered other items than the others")
        scores = np.concatenate([r.columns["score"] for r in responses.values()])
        return scores.astype(np.float64) if np.isfinite(scores).all() else None


def _different(genomes: Sequence[Genome]) -> list[Genome]:
    """Each genome once, in order."""
    return list({json.dumps(genome, sort_keys=True): genome for genome in genomes}.values())


def _seeds(space: SearchSpace, seed: int, facts: Facts, size: int) -> list[Genome]:
    """What is asked for first: at least two designs, then the best of another run."""
    designs = _different(facts.designs)
    generator = np.random.default_rng(np.random.SeedSequence(seed))
    designs += [space.sample(generator) for _ in range(2 - len(designs))]
    known = sorted((e for e in facts.warm_start if is_scored(e)), key=order_key)
    return _different([*designs, *_different([e.genome for e in known])[:size]])
