"""Racing: many candidates answer a few items, the best of them answer more.

Successive halving (Jamieson & Talwalkar 2016, arXiv:1502.07943) on nested item sets that all
candidates of a cohort share, with an early end for those that the incumbents beat beyond doubt
(Maron & Moore 1993, Hoeffding races; here with paired differences). Three things make its scores
comparable over a long search:

- a candidate dropped at rung r ranks below every survivor of r, whatever the values;
- the items rotate from cohort to cohort, so that nobody wins by knowing them;
- the incumbents answer each cohort's items too, and are scored anew on them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from pydantic import Field, field_validator

from evomerge.errors import ConfigurationError
from evomerge.fitness.estimators.estimate import (
    EstimatorOptions,
    Items,
    difference,
    estimate,
    missing_requests,
    parse_options,
    who_can_answer,
)
from evomerge.fitness.estimators.fixed import draw
from evomerge.pareto import front_ranks
from evomerge.records import (
    Candidate,
    CandidateId,
    Cohort,
    Objective,
    Request,
    Score,
)


class RacingOptions(EstimatorOptions):
    """The shape of a race.

    rungs: items of each task that a candidate has answered at the end of each rung, rising.
    keep: the share of a rung's candidates that goes on.
    incumbents: how many of the best so far run along.
    confidence: how many standard errors of the paired difference count as beyond doubt.
    rotate: whether each cohort gets other items.
    """

    rungs: tuple[int, ...] = (15, 45, 120)
    keep: float = Field(default=1 / 3, gt=0, lt=1)
    incumbents: int = Field(default=1, ge=0)
    confidence: float = Field(default=2.0, gt=0)
    rotate: bool = True

    @field_validator("rungs")
    @classmethod
    def _rising(cls, rungs: tuple[int, ...]) -> tuple[int, ...]:
        if not rungs or rungs[0] < 2 or any(a >= b for a, b in pairwise(rungs)):
            raise ValueError("rungs must rise, from 2 items or more")
        return rungs


@dataclass(frozen=True)
class Rung:
    """One stage of a race: who answers which items."""

    candidates: tuple[Candidate, ...]
    incumbents: tuple[Candidate, ...]
    failed: tuple[Candidate, ...]  # they came this far, and then failed
    items: Items

    @property
    def everybody(self) -> tuple[Candidate, ...]:
        """All who answer."""
        return (*self.candidates, *self.incumbents)


class Racing:
    """Successive halving on common, rotating items, against the incumbents."""

    summary = "few items for all, more for the best; against the incumbents"
    Options = RacingOptions

    def __init__(
        self, objectives: Sequence[Objective], order: Items, options: RacingOptions
    ) -> None:
        self._objectives = tuple(objectives)
        self._order = order  # task -> all its search items, in the order of their use
        self._options = options
        self.num_incumbents = options.incumbents

    @classmethod
    def make(
        cls, objectives: Sequence[Objective], items: Items, seed: int, options: Mapping[str, Any]
    ) -> Racing:
        """A race whose order of items comes from the run's seed."""
        parsed = parse_options(RacingOptions, options)
        scarce = [f"{t} ({len(i)})" for t, i in items.items() if len(i) < parsed.rungs[-1]]
        if scarce:
            raise ConfigurationError(
                f"estimator: the last rung asks for {parsed.rungs[-1]} items of each task; "
                f"fewer are for the search in {', '.join(scarce)}"
            )
        order = {task: draw({task: ids}, len(ids), seed)[task] for task, ids in items.items()}
        return cls(objectives, order, parsed)

    def expected_items(self, num_candidates: int) -> int:
        """Item evaluations that a cohort of this size costs if no incumbent ends a race early."""
        total, answered = 0, 0
        for count in self._options.rungs:
            total += (num_candidates + self.num_incumbents) * (count - answered) * len(self._order)
            answered = count
            num_candidates = math.ceil(self._options.keep * num_candidates)
        return total

    def requests(self, cohort: Cohort) -> list[Request]:
        """What the first unfinished rung still lacks."""
        for rung in self._race(cohort):
            if requests := missing_requests(rung.everybody, cohort.measurements, rung.items):
                return requests
        return []

    def scores(self, cohort: Cohort) -> dict[CandidateId, Score]:
        """Each candidate's means on the last rung that it ran; incumbents' if they ran them all."""
        scores: dict[CandidateId, Score] = {}
        rungs = self._race(cohort)
        for number, rung in enumerate(rungs):
            if missing_requests(rung.everybody, cohort.measurements, rung.items):
                break  # still under way
            at_the_end = number + 1 == len(self._options.rungs)
            for candidate in rung.failed:
                scores.pop(candidate.id, None)
            for candidate in rung.everybody if at_the_end else rung.candidates:
                scores[candidate.id] = self._score(candidate, cohort, rung.items, number)
        return scores

    def _race(self, cohort: Cohort) -> list[Rung]:
        """The rungs as far as the answers go: the last one may still lack some.

        Only a rung's own items decide who leaves it. Answers that are there for other reasons
        change nothing, so a race that is run again comes out the same.
        """
        candidates = tuple(c for c in cohort.candidates if c.recipe is not None)
        incumbents = cohort.incumbents
        rungs: list[Rung] = []
        for count in self._options.rungs:
            items = self._items(cohort.index, count)
            able = who_can_answer(candidates, cohort.measurements, items)
            rung = Rung(
                able,
                who_can_answer(incumbents, cohort.measurements, items),
                tuple(c for c in candidates if c not in able),
                items,
            )
            if not candidates:
                break
            rungs.append(rung)
            if not able or missing_requests(rung.everybody, cohort.measurements, items):
                break
            candidates, incumbents = self._survivors(rung, cohort), rung.incumbents
        return rungs

    def _items(self, cohort: int, count: int) -> dict[str, tuple[int, ...]]:
        """The first `count` items of a cohort's window; windows follow each other in a ring."""
        shift = max(cohort, 0) * self._options.rungs[-1] if self._options.rotate else 0
        return {
            task: tuple(order[(shift + i) % len(order)] for i in range(count))
            for task, order in self._order.items()
        }

    def _score(self, candidate: Candidate, cohort: Cohort, items: Items, rung: int = 0) -> Score:
        return Score(estimate(self._objectives, cohort.measurements, candidate, items), rung)

    def _survivors(self, rung: Rung, cohort: Cohort) -> tuple[Candidate, ...]:
        """The best share of a rung, less those that an incumbent beats beyond doubt."""
        scores = [self._score(candidate, cohort, rung.items) for candidate in rung.candidates]
        means = np.array([score.mean for score in scores])
        keep = math.ceil(self._options.keep * len(rung.candidates))
        ranks = front_ranks([score.values for score in scores])
        order = np.lexsort((-means, ranks))  # stable: ties by id
        kept = [rung.candidates[i] for i in sorted(order[:keep])]
        return tuple(c for c in kept if not self._is_hopeless(c, rung, cohort))

    def _is_hopeless(self, candidate: Candidate, rung: Rung, cohort: Cohort) -> bool:
        """Whether an incumbent dominates even the candidate's optimistic bounds.

        Costs are known: to cost the same is no advantage.
        """
        exact = np.array([objective.cost is not None for objective in self._objectives])
        for incumbent in rung.incumbents:
            mean, error = difference(
                self._objectives,
                cohort.measurements,
                candidate,
                incumbent,
                rung.items,
            )
            bound = mean + self._options.confidence * error
            if bool(np.all((bound < 0) | (exact & (bound == 0)))):
                return True
        return False
