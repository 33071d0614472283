"""From requests to recorded responses: the one place where jobs are made and outcomes committed."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np

from evomerge.ledger import Ledger
from evomerge.protocols import Observer, Pool
from evomerge.records import (
    Candidate,
    CandidateId,
    Failure,
    ItemId,
    Job,
    Objective,
    Outcome,
    Request,
    Responses,
)

logger = logging.getLogger(__name__)

Columns = Mapping[str, Collection[str]]  # task -> names of columns

COLLECT_S = 0.5  # how long to wait for outcomes before the driver looks around again


class Measurer:
    """Measures requests on a pool, never twice the same item of the same recipe.

    Responses are shared by all that ask for them, whoever asked first. A failure is not: it is
    recorded when its cohort's turn has come, so that what an earlier cohort sees of a recipe (one
    that both have, or an incumbent) does not depend on what arrived first.
    """

    def __init__(
        self,
        pool: Pool,
        ledger: Ledger,
        observers: Sequence[Observer] = (),
        columns: Columns | None = None,
    ) -> None:
        """columns: what is wanted of each task beside its score; see `checked`."""
        self._pool = pool
        self._ledger = ledger
        self._observers = observers
        self._columns = columns or {}
        self._cohorts: dict[int, int] = {}  # job under way -> the cohort that it is for
        self._carriers: dict[tuple[str, str], dict[ItemId, int]] = {}  # what is under way, and how
        self._awaited: defaultdict[int, set[int]] = defaultdict(set)  # cohort -> jobs
        self._waiters: defaultdict[int, set[int]] = defaultdict(set)  # job -> cohorts
        self._held: list[tuple[int, Outcome]] = []  # failures whose cohort's turn has not come
        self._next_job = 0

    def submit(self, cohort: int, requests: Sequence[Request]) -> None:
        """Send what is neither known nor under way; one job for each candidate."""
        jobs: dict[CandidateId, dict[str, tuple[ItemId, ...]]] = {}
        new: dict[tuple[str, str], set[ItemId]] = {}  # two candidates may have one recipe
        measurements = self._ledger.measurements
        for request in requests:
            fingerprint = self._candidate(request.candidate).fingerprint
            if not measurements.can_answer(fingerprint, {request.task: request.items}):
                continue
            key = (fingerprint, request.task)
            items = measurements.missing(fingerprint, request.task, request.items)
            if carriers := self._carriers.get(key):
                for item in carriers.keys() & items:
                    self._await(cohort, carriers[item])
                items = tuple(item for item in items if item not in carriers)
            if key in new:
                items = tuple(item for item in items if item not in new[key])
            if items:
                jobs.setdefault(request.candidate, {})[request.task] = items
                new.setdefault(key, set()).update(items)
        for candidate, wanted in jobs.items():
            self._submit(cohort, candidate, wanted)

    @property
    def is_busy(self) -> bool:
        """Whether jobs are under way."""
        return bool(self._cohorts)

    def waiting(self, cohort: int) -> bool:
        """Whether something that the cohort asked for has neither come nor failed."""
        return bool(self._awaited.get(cohort))

    def collect(self, head: int, wait_s: float = COLLECT_S) -> None:
        """Wait a moment for outcomes and commit them.

        head: the cohort whose turn it is; failures of later ones are kept back.
        wait_s: how long at most.

        Raises:
            NoWorkersLeft: nothing can be measured any more.
        """
        due = [(cohort, outcome) for cohort, outcome in self._held if cohort <= head]
        self._held = [(cohort, outcome) for cohort, outcome in self._held if cohort > head]
        for cohort, outcome in due:
            self._record(cohort, outcome)
            notify(self._observers, "measured", outcome)
        if due:
            return
        outcomes = [checked(o, self._columns) for o in self._pool.collect(wait_s)]
        # What arrived together is made durable together: the disk costs more than the driver.
        recorded = []
        with self._ledger.together() if len(outcomes) > 1 else nullcontext():
            for outcome in outcomes:
                cohort = self._land(outcome.job)
                if outcome.failure is None or cohort <= head:
                    self._record(cohort, outcome)
                    recorded.append(outcome)
                else:
                    self._held.append((cohort, outcome))
                    for other in [c for c in self._waiters[outcome.job.id] if c < cohort]:
                        self._release(other, outcome.job.id)  # it has to ask for itself
        for outcome in recorded:  # not before it is durable, nor while others wait for the file
            notify(self._observers, "measured", outcome)

    def cancel(self) -> None:
        """Take back what no worker has begun: nobody will wait for it."""
        for job in self._pool.cancel():
            self._land(job)
            self._settle(job)

    def measure(self, cohort: int, requests: Sequence[Request]) -> None:
        """Submit, and wait until all of it is measured or failed."""
        self.submit(cohort, requests)
        while self.waiting(cohort):
            self.collect(cohort)

    def _submit(
        self, cohort: int, candidate: CandidateId, items: dict[str, tuple[ItemId, ...]]
    ) -> None:
        recipe = self._candidate(candidate).recipe
        if recipe is None:
            raise ValueError(f"candidate {candidate} has no recipe and cannot be measured")
        job = Job(self._next_job, candidate, recipe, items)
        self._next_job += 1
        self._cohorts[job.id] = cohort
        self._await(cohort, job.id)
        for task, ids in items.items():
            carriers = self._carriers.setdefault((recipe.fingerprint, task), {})
            carriers.update(dict.fromkeys(ids, job.id))
        self._pool.submit(job)

    def _land(self, job: Job) -> int:
        """A job is no longer under way; the cohort that it was for."""
        for task, ids in job.items.items():
            key = (job.recipe.fingerprint, task)
            for item in ids:
                del self._carriers[key][item]
            if not self._carriers[key]:
                del self._carriers[key]
        return self._cohorts.pop(job.id)

    def _record(self, cohort: int, outcome: Outcome) -> None:
        self._ledger.measured(cohort, outcome)
        self._settle(outcome.job)

    def _settle(self, job: Job) -> None:
        """Nobody waits for a job any more."""
        for cohort in list(self._waiters[job.id]):
            self._release(cohort, job.id)
        del self._waiters[job.id]

    def _await(self, cohort: int, job: int) -> None:
        self._awaited[cohort].add(job)
        self._waiters[job].add(cohort)

    def _release(self, cohort: int, job: int) -> None:
        """A cohort waits for a job no longer."""
        self._waiters[job].discard(cohort)
        self._awaited[cohort].discard(job)
        if not self._awaited[cohort]:
            del self._awaited[cohort]

    def _candidate(self, candidate: CandidateId) -> Candidate:
        return self._ledger.candidates[candidate]


def notify(observers: Sequence[Observer], event: str, *facts: Any) -> None:
    """Tell all who watch and want to know; one that fails is logged and cannot end the search."""
    for observer in observers:
        try:
            if (told := getattr(observer, event, None)) is not None:
                told(*facts)
        except Exception:
            logger.exception("%s failed to watch", type(observer).__name__)


def checked(outcome: Outcome, wanted: Columns | None = None) -> Outcome:
    """An outcome that answers what its job asked, in finite numbers; else a failure.

    An item that failed has a score, the worst one, and no other numbers. A candidate whose other
    numbers are wanted of that item has failed: there is no worst margin or log-likelihood. Whether
    a candidate fails that answers no item is not told by one job: see `Measurements.can_answer`.

    Args:
        outcome: as a worker sent it.
        wanted: task -> columns that objectives are made of.
    """
    if outcome.failure is not None:
        return outcome
    failure = None
    answered = {r.task: tuple(r.items.tolist()) for r in outcome.responses}
    if answered != {task: tuple(items) for task, items in outcome.job.items.items()}:
        failure = Failure("task", "other items were answered than were asked")
    for responses in outcome.responses:
        failure = failure or _why_not(responses, (wanted or {}).get(responses.task, ()))
    return outcome if failure is None else replace(outcome, responses=(), failure=failure)


def _why_not(responses: Responses, wanted: Collection[str]) -> Failure | None:
    """Why responses cannot be used."""
    task = responses.task
    if not responses.failures and all(np.isfinite(v).all() for v in responses.columns.values()):
        return None  # as nearly always
    has_failed = np.isin(responses.items, list(responses.failures))
    for name, values in responses.columns.items():
        excused = np.isnan(values) & has_failed
        if not (np.isfinite(values) | (excused & (name != "score"))).all():
            return Failure("non_finite", f"{task}: {name} is not finite")
        if name in wanted and excused.any():
            item = int(responses.items[np.flatnonzero(excused)[0]])
            reason = responses.failures[item]
            return Failure("task", f"{task}: item {item} has no {name}: {reason}")
    return None


def wanted_columns(objectives: Iterable[Objective]) -> dict[str, set[str]]:
    """Task -> the columns that these objectives are made of.

    Agreement needs none of an item that failed: nobody agrees with no answer.
    """
    wanted: dict[str, set[str]] = {}
    for objective in objectives:
        for task in objective.weights if not objective.agreement else ():
            wanted.setdefault(task, set()).add(objective.column)
    return wanted


def requests_for(
    candidates: Iterable[Candidate], items: Mapping[str, Sequence[int]]
) -> list[Request]:
    """All the items, for every candidate that can be measured."""
    return [
        Request(candidate.id, task, tuple(ids))
        for candidate in candidates
        if candidate.recipe is not None
        for task, ids in items.items()
    ]
