"""When a search has found or spent enough: pure functions of what was told."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from evomerge.records import Candidate, CandidateId, Evaluation, ItemId, Measurements, Score

CONFIDENCE = 1.96  # standard errors between a value and its bound: 95 %


@dataclass
class Progress:
    """How the best candidate so far has come along, judged by what it has surely reached.

    Progress is a new best candidate whose lower confidence bound is above that of the best before
    it, as far as that is known by then. To be scored anew, on other items, is none.

    target: objective -> the value that a candidate must surely have, as it is maximised; one that a
    race has dropped does not count, whose few answers may all have been right.
    """

    target: Mapping[str, float] = field(default_factory=dict)
    best: CandidateId | None = None
    bound: float = -math.inf
    since: int = 0  # candidates that had been told when there last was progress
    reached: CandidateId | None = None  # the first that has the target

    def told(self, best: Evaluation | None, news: Sequence[Evaluation], num_told: int) -> None:
        """Take in a cohort.

        best: the best candidate so far. news: who has new scores. num_told: candidates until now.
        """
        if best is not None and best.score is not None:
            bound = lower_bound(best.score)
            if best.id != self.best and bound > self.bound:
                self.since = num_told
            self.best, self.bound = best.id, bound
        if self.target and self.reached is None:
            top = 0 if best is None or best.score is None else best.score.rung
            scored = [(e.id, e.score) for e in news if e.score is not None and e.score.rung >= top]
            self.reached = next((id_ for id_, s in scored if has(self.target, s)), None)


@dataclass
class Spent:
    """Item evaluations that a search has needed so far, each once.

    By whose job an item was answered first depends on the workers, where cohorts that are under way
    together share recipes or incumbents; that somebody needed it does not.
    """

    total: int = 0
    _seen: dict[tuple[str, str], int] = field(default_factory=dict)  # a bit for each item

    def add(self, fingerprint: str, task: str, items: Iterable[ItemId]) -> None:
        """Count what was not counted before."""
        mask = 0
        for item in items:
            mask |= 1 << int(item)
        seen = self._seen.get((fingerprint, task), 0)
        self.total += (mask & ~seen).bit_count()
        self._seen[fingerprint, task] = seen | mask

    def part_of(self, fingerprint: str, task: str, items: Iterable[ItemId]) -> tuple[ItemId, ...]:
        """Those of the items that the search needed of a recipe."""
        seen = self._seen.get((fingerprint, task), 0)
        return tuple(item for item in items if seen >> int(item) & 1)

    def told(
        self,
        needed: Iterable[tuple[Candidate, Mapping[str, Sequence[ItemId]]]],
        known: Measurements,
    ) -> None:
        """Take in a cohort; those who could not answer have cost nothing that is known."""
        for candidate, asked in needed:
            for task, items in asked.items():
                if not known.missing(candidate.fingerprint, task, items):
                    self.add(candidate.fingerprint, task, items)


def lower_bound(score: Score) -> float:
    """The lower end of the 95 % interval of the mean of the measured objectives.

    Their errors count as independent.
    """
    measured = [e for e in score.objectives.values() if not e.is_cost]
    errors = math.hypot(*(e.standard_error for e in measured)) / max(1, len(measured))
    return score.mean - CONFIDENCE * errors


def has(target: Mapping[str, float], score: Score) -> bool:
    """Whether the lower ends of the 95 % intervals are all at the target or above."""
    return all(
        (estimate := score.objectives[name]).value - CONFIDENCE * estimate.standard_error >= wanted
        for name, wanted in target.items()
    )
