"""Writes the next recipe into an idle model while another model is measured.

Two models take turns. What is written is the same as without: both are written by the same merger,
one recipe at a time, and what a model holds does not depend on what it held before.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING

from evomerge.recipe import Recipe
from evomerge.records import Failure, Job

if TYPE_CHECKING:
    from evomerge.merging.resident import Resident

Write = Callable[["Resident", Recipe], Failure | None]


@dataclass(frozen=True)
class Written:
    """A model with a recipe in it, or why it has not; and the seconds that writing took."""

    model: Resident
    failure: Failure | None
    merge_s: float


class Turns:
    """A model that is measured, one that is prepared meanwhile, and who waits for that.

    Its methods may be called from several threads, but `write` and `give_up` only from the one that
    measures: when it asks for the next, it has done with what it was given before.
    """

    def __init__(self, measured: Resident, idle: Resident | None, write: Write, threads: int):
        self.measured = measured
        self._idle = idle
        self._write_into = write
        self._merging = Lock()  # the merger and its caches are shared
        self._state = Lock()
        self._waiting: OrderedDict[int, Job] = OrderedDict()
        self._begun: tuple[Job, Future[Written]] | None = None  # in the idle model
        self._passed = 0  # jobs that were taken before it since
        self._thread: ThreadPoolExecutor | None = None
        if idle is not None:
            self._thread = ThreadPoolExecutor(1, "prepare", _use_threads, (threads,))

    @property
    def has_two(self) -> bool:
        """Whether there is a second model to prepare."""
        return self._idle is not None

    def prepare(self, job: Job) -> None:
        """Write a job's recipe into the idle model as soon as it is free; returns at once."""
        with self._state:
            if self._idle is not None:
                self._waiting[job.id] = job
                self._begin()

    def forget(self, job_id: int) -> None:
        """A job that was to be prepared will not be taken."""
        with self._state:
            self._waiting.pop(job_id, None)
            if self._begun is not None and self._begun[0].id == job_id:
                self._begun[1].cancel()  # one that is being written is written to its end
                self._begun = None
                self._begin()

    def write(self, job: Job) -> Written:
        """A model with the job's recipe in it: a prepared one, or else it is written now.

        Raises:
            ModelError: a model can no longer be read.
        """
        prepared = self._take(job)
        if prepared is not None:
            written = prepared.result()
            if written.failure is None or written.failure.kind != "memory":
                return written
            self.give_up()  # memory may do for one model alone
        return self._write(self.measured, job.recipe)

    def give_up(self) -> bool:
        """Let go of the second model, for its memory; whether there was one."""
        with self._state:
            had, self._idle, self._begun = self.has_two, None, None
            self._waiting.clear()
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)
            self._thread = None
        return had

    def _take(self, job: Job) -> Future[Written] | None:
        """What is prepared of a job. The models change places before it is finished.

        So the next one that waits is written after it, and into the other model.
        """
        with self._state:
            self._waiting.pop(job.id, None)
            if self._begun is None or self._begun[0] != job or self._idle is None:
                self._pass_over()
                return None
            future, self._begun = self._begun[1], None
            self.measured, self._idle = self._idle, self.measured
            self._begin()
            return future

    def _pass_over(self) -> None:
        """Somebody else is taken; who is passed over twice was told of too late, and is done."""
        self._passed += 1
        if self._begun is not None and self._passed > 1:
            self._begun[1].cancel()
            self._begun = None
            self._begin()

    def _begin(self) -> None:
        if self._begun is None and self._waiting and self._idle is not None and self._thread:
            _, job = self._waiting.popitem(last=False)
            self._begun = job, self._thread.submit(self._write, self._idle, job.recipe)
            self._passed = 0

    def _write(self, model: Resident, recipe: Recipe) -> Written:
        with self._merging:
            start = time.perf_counter()
            failure = self._write_into(model, recipe)
            return Written(model, failure, time.perf_counter() - start)


def _use_threads(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)  # OpenMP counts for each thread that begins work
