"""The pool of one: the driver measures for itself."""

from __future__ import annotations

import logging
from collections import deque

from evomerge.pools.worker import Worker, WorkerSpec
from evomerge.records import Job, Outcome

logger = logging.getLogger(__name__)


class InlinePool:
    """Measures in the driver's process, one job per `collect`."""

    slots = 1

    def __init__(self, spec: WorkerSpec) -> None:
        self._spec = spec
        self._worker = Worker(spec, "driver")
        self._queue: deque[Job] = deque()

    def submit(self, job: Job) -> None:
        """Queue a job."""
        self._queue.append(job)

    def collect(self, timeout_s: float) -> list[Outcome]:  # noqa: ARG002 - nothing to wait for
        """Run the next job; where there is no memory for it, once more with a fresh worker."""
        if not self._queue:
            return []
        job = self._queue.popleft()
        outcome = self._worker.run(job)
        if outcome.failure is not None and outcome.failure.kind == "memory":
            what = outcome.failure.reason
            logger.warning("candidate %d: %s; trying again", job.candidate, what)
            del self._worker  # before the next one takes its place
            self._worker = Worker(self._spec, "driver")
            outcome = self._worker.run(job)
        return [outcome]

    def cancel(self) -> list[Job]:
        """Take back what is queued."""
        jobs = list(self._queue)
        self._queue.clear()
        return jobs

    def close(self) -> None:
        """Forget what is queued."""
        self._queue.clear()
