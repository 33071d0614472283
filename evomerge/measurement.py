"""From requests to recorded responses: the one place where jobs are made and outcomes committed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from evomerge.ledger import Ledger
from evomerge.protocols import Observer, Pool
from evomerge.records import Candidate, CandidateId, Job, Request

COLLECT_S = 0.5  # how long to wait for outcomes before the driver looks around again


class Measurer:
    """Measures requests on a pool, never twice the same item of the same recipe."""

    def __init__(self, pool: Pool, ledger: Ledger, observers: Sequence[Observer] = ()) -> None:
        self._pool = pool
        self._ledger = ledger
        self._observers = observers
        self._wanted: dict[int, list[Request]] = {}  # cohort -> what it waits for
        self._in_flight: dict[int, tuple[int, Job]] = {}  # job id -> (cohort, job)
        self._next_job = 0

    def submit(self, cohort: int, requests: Sequence[Request]) -> None:
        """Send what is neither known nor under way; one job for each candidate."""
        self._wanted.setdefault(cohort, []).extend(requests)
        under_way = {
            (job.recipe.fingerprint, task, item)
            for _, job in self._in_flight.values()
            for task, items in job.items.items()
            for item in items
        }
        jobs: dict[CandidateId, dict[str, tuple[int, ...]]] = {}
        for request in requests:
            fingerprint = self._candidate(request.candidate).fingerprint
            new = tuple(
                item
                for item in self._ledger.measurements.missing(
                    fingerprint, request.task, request.items
                )
                if (fingerprint, request.task, item) not in under_way
            )
            if new:
                jobs.setdefault(request.candidate, {})[request.task] = new
                under_way.update((fingerprint, request.task, item) for item in new)
        for candidate, items in jobs.items():
            self._submit(cohort, candidate, items)

    def waiting(self, cohort: int) -> bool:
        """Whether something that the cohort asked for has neither come nor failed."""
        measurements = self._ledger.measurements
        still = [
            request
            for request in self._wanted.get(cohort, ())
            if (fingerprint := self._candidate(request.candidate).fingerprint)
            not in measurements.failures
            and measurements.missing(fingerprint, request.task, request.items)
        ]
        self._wanted[cohort] = still
        return bool(still)

    def collect(self) -> None:
        """Wait a moment for outcomes and commit each by itself.

        Raises:
            NoWorkersLeft: nothing can be measured any more.
        """
        for outcome in self._pool.collect(COLLECT_S):
            cohort, _ = self._in_flight.pop(outcome.job.id)
            self._ledger.measured(cohort, outcome)
            for observer in self._observers:
                observer.measured(outcome)

    def measure(self, cohort: int, requests: Sequence[Request]) -> None:
        """Submit, and wait until all of it is measured or failed."""
        self.submit(cohort, requests)
        while self.waiting(cohort):
            self.collect()

    def _submit(
        self, cohort: int, candidate: CandidateId, items: dict[str, tuple[int, ...]]
    ) -> None:
        recipe = self._candidate(candidate).recipe
        if recipe is None:
            raise ValueError(f"candidate {candidate} has no recipe and cannot be measured")
        job = Job(self._next_job, candidate, recipe, items)
        self._next_job += 1
        self._in_flight[job.id] = (cohort, job)
        self._pool.submit(job)

    def _candidate(self, candidate: CandidateId) -> Candidate:
        return self._ledger.candidates[candidate]


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
