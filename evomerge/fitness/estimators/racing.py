"""Racing: many candidates answer a few items, the best of them answer more.

Successive halving (Jamieson & Talwalkar 2016, arXiv:1502.07943) on nested item sets that all
candidates of a cohort share, with an early end for those that the incumbents beat beyond doubt
(Maron & Moore 1993, Hoeffding races; here with paired differences). Three things make its scores
comparable over a long search:

- a candidate dropped at rung r ranks below every survivor of r, whatever the values;
- the items rotate from cohort to cohort, so that nobody wins by knowing them;
- the incumbents answer each cohort's items too, and are scored anew on them.

What the answers are worth is a reading's to say (reading.py), so a race goes with any. An estimator
that asks everybody the same is a race of one rung.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from pydantic import Field, field_validator

from evomerge.errors import ConfigurationError
from evomerge.fitness.estimators.estimate import (
    EstimatorOptions,
    Items,
    missing_requests,
    who_can_answer,
)
from evomerge.fitness.estimators.reading import Estimates, Reading
from evomerge.pareto import front_ranks
from evomerge.records import (
    Candidate,
    CandidateId,
    Cohort,
    Failure,
    Objective,
    Request,
    Score,
    Told,
)


class RaceOptions(EstimatorOptions):
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


class OneRungOptions(EstimatorOptions):
    """For estimators that ask everybody the same items.

    items: how many of each task.
    incumbents: how many of the best so far are scored anew with each cohort; for use with `rotate`.
    rotate: whether each cohort gets other items.
    """

    items: int = Field(ge=2)
    incumbents: int = Field(default=0, ge=0)
    rotate: bool = False

    @property
    def race(self) -> RaceOptions:
        """The race that it is."""
        return RaceOptions(rungs=(self.items,), incumbents=self.incumbents, rotate=self.rotate)


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


class Race:
    """Successive halving on common items, against the incumbents.

    options: None asks everybody for everything.

    Raises:
        ConfigurationError: the last rung asks for more items than a task has.
    """

    def __init__(
        self, objectives: Sequence[Objective], reading: Reading, options: RaceOptions | None
    ) -> None:
        self._objectives = tuple(objectives)
        self._reading = reading
        self._options = options or RaceOptions(incumbents=0, rotate=False)
        self._everything = options is None
        self.num_incumbents = self._options.incumbents
        self.needs_history = reading.needs_history
        self.needs_genes = reading.needs_genes
        one_set = len(self._options.rungs) == 1 and not self._options.rotate
        self.is_complete = self._everything or (one_set and not self.needs_history)
        if options is not None:
            _check_enough(reading, options.rungs[-1])

    def expected_items(self, num_candidates: int) -> int:
        """Item evaluations that a cohort of this size costs if no incumbent ends a race early."""
        if self._everything:
            return num_candidates * sum(map(len, self._reading.tasks.values()))
        total, answered = 0, 0
        # Where items stand still, the incumbents have answered them before.
        others = self.num_incumbents if self._options.rotate else 0
        for count in self._options.rungs:
            total += (num_candidates + others) * (count - answered)
            answered = count
            num_candidates = math.ceil(self._options.keep * num_candidates)
        return total * len(self._reading.tasks)

    def requests(self, cohort: Cohort) -> list[Request]:
        """What the first unfinished rung still lacks."""
        for rung in self._race(cohort):
            if requests := missing_requests(rung.everybody, cohort.measurements, rung.items):
                return requests
        return []

    def scores(self, cohort: Cohort) -> dict[CandidateId, Score]:
        """Each candidate's scores on the last rung that it ran; incumbents' if they ran them all.

        Who has no finite value in some objective keeps the score of the rung before, if any.
        """
        return {id_: score for id_, (score, _) in self._scored(cohort).items()}

    def failures(self, cohort: Cohort) -> dict[CandidateId, Failure]:
        """Why candidates failed at the items of the rung where they did."""
        known = cohort.measurements
        return {
            candidate.id: failure
            for rung in self._finished(cohort)
            for candidate in rung.failed
            if (failure := known.why_not(candidate.fingerprint, rung.items, cohort.index))
        }

    def needed(self, cohort: Cohort) -> list[tuple[Candidate, Items]]:
        """Everybody of every rung, and its items."""
        return [
            (candidate, rung.items)
            for rung in self._finished(cohort)
            for candidate in (*rung.everybody, *rung.failed)
        ]

    def told(self, cohort: Cohort) -> list[Told]:
        """Those who have a score, and the items that it rests on."""
        return [told for _, told in self._scored(cohort).values()]

    def _scored(self, cohort: Cohort) -> dict[CandidateId, tuple[Score, Told]]:
        found: dict[CandidateId, tuple[Score, Told]] = {}
        for number, rung in enumerate(self._finished(cohort)):
            for candidate in rung.failed:
                found.pop(candidate.id, None)
            who = self._who_is_scored(number, rung)
            estimates = self._estimates(cohort, rung, who)
            for candidate in who:
                score = Score(estimates[candidate.id], number)
                if np.isfinite(score.values).all():
                    found[candidate.id] = score, Told(candidate, rung.items, number)
        return found

    def told_anew(self, cohort: Cohort) -> dict[CandidateId, Score]:
        """Scores of everybody in the cohort's history, in the light of all of it.

        Of each candidate, on the items that it was told by last.
        """
        last = {entry.candidate.id: entry for entry in cohort.history}
        groups: dict[int, list[Told]] = {}
        for entry in last.values():
            groups.setdefault(id(entry.items), []).append(entry)
        found: dict[CandidateId, Score] = {}
        for entries in groups.values():
            who = [entry.candidate for entry in entries]
            estimates = self._reading.estimates(cohort, who, entries[0].items)
            found |= {e.candidate.id: Score(estimates[e.candidate.id], e.rung) for e in entries}
        return {id_: score for id_, score in found.items() if np.isfinite(score.values).all()}

    def _who_is_scored(self, number: int, rung: Rung) -> tuple[Candidate, ...]:
        at_the_end = self._everything or number + 1 == len(self._options.rungs)
        return rung.everybody if at_the_end else rung.candidates

    def _finished(self, cohort: Cohort) -> list[Rung]:
        """The rungs that nobody is still running."""
        rungs = self._race(cohort)
        under_way = rungs and missing_requests(
            rungs[-1].everybody, cohort.measurements, rungs[-1].items
        )
        return rungs[:-1] if under_way else rungs

    def _race(self, cohort: Cohort) -> list[Rung]:
        """The rungs as far as the answers go: the last one may still lack some.

        Only a rung's own items decide who leaves it. Answers that are there for other reasons
        change nothing, so a race that is run again comes out the same.
        """
        candidates = tuple(c for c in cohort.candidates if c.recipe is not None)
        incumbents = cohort.incumbents
        rungs: list[Rung] = []
        for items in self._item_sets(cohort) if candidates else ():
            if rungs:
                candidates, incumbents = self._survivors(rungs[-1], cohort), rungs[-1].incumbents
            if not candidates:
                break
            able = who_can_answer(candidates, cohort.measurements, items)
            able_ids = {c.id for c in able}
            rung = Rung(
                able,
                who_can_answer(incumbents, cohort.measurements, items),
                tuple(c for c in candidates if c.id not in able_ids),
                items,
            )
            rungs.append(rung)
            if not able or missing_requests(rung.everybody, cohort.measurements, items):
                break
        return rungs

    def _item_sets(self, cohort: Cohort) -> list[Items]:
        """The items of every rung."""
        if self._everything:
            return [self._reading.tasks]
        rotation = max(cohort.index, 0) if self._options.rotate else 0
        return self._reading.items(cohort, self._options.rungs, rotation)

    def _estimates(self, cohort: Cohort, rung: Rung, who: Sequence[Candidate]) -> Estimates:
        return self._reading.estimates(cohort, who, rung.items) if who else {}

    def _survivors(self, rung: Rung, cohort: Cohort) -> tuple[Candidate, ...]:
        """The best share of a rung, less those that an incumbent beats beyond doubt."""
        estimates = self._estimates(cohort, rung, rung.candidates)
        scores = [Score(estimates[candidate.id]) for candidate in rung.candidates]
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
            mean, error = self._reading.difference(cohort, candidate, incumbent, rung.items)
            bound = mean + self._options.confidence * error
            if bool(np.all((bound < 0) | (exact & (bound == 0)))):
                return True
        return False


def _check_enough(reading: Reading, count: int) -> None:
    # A task with a single item (it gives one number) answers that, whatever is asked.
    scarce = [f"{t} ({len(i)})" for t, i in reading.tasks.items() if 1 < len(i) < count]
    if scarce:
        raise ConfigurationError(
            f"estimator: {count} items of each task were asked for; "
            f"fewer are for the search in {', '.join(scarce)}"
        )
