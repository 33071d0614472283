"""Workers that answer after a while and have no model, and what they answer; light to import."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from ray import cloudpickle

from evomerge.pools.ray_worker import Hello, Reply, in_thread
from evomerge.records import Job, Outcome, Responses


def answer(worker: str, job: Job) -> Outcome:
    """Made-up answers that depend on the recipe alone."""
    generator = np.random.default_rng(int(job.recipe.fingerprint[:8], 16))
    responses = tuple(
        Responses(
            task,
            np.asarray(items, np.int64),
            {"score": (generator.random(len(items)) < 0.5).astype(np.float32)},
        )
        for task, items in job.items.items()
    )
    return Outcome(job, responses, worker=worker)


def seconds_of(mean: float) -> Callable[[str, Job], float]:
    """.8 to 1.2 times as long, by the job's number."""
    return lambda _worker, job: mean * (0.8 + 0.4 * ((job.id * 0.6180339887) % 1.0))


@dataclass(frozen=True)
class Sleep:
    """What stands in place of a worker's spec."""

    seconds: float
    ahead: bool = False
    device: str = "cpu"


class SleepingWorker:
    """An actor that answers after a while, and has no model."""

    def __init__(self, name: str, device: str) -> None:  # noqa: ARG002
        self._name = name
        self._forgotten: set[int] = set()

    @in_thread("measure")
    def open(self, wanted: str, pickled: bytes) -> Reply:  # noqa: ARG002
        """Ready at once."""
        spec: Sleep = cloudpickle.loads(pickled)
        self._seconds = seconds_of(spec.seconds)
        return Reply(Hello("none", os.getpid(), ""))

    @in_thread("ahead")
    def forget(self, job: int) -> None:
        """A job that waits is not to be done."""
        self._forgotten.add(job)

    @in_thread("measure")
    def run(self, job: Job) -> Reply:
        """Sleep, then answer."""
        if job.id in self._forgotten:
            return Reply(None)
        seconds = self._seconds(self._name, job)
        time.sleep(seconds)
        return Reply(replace(answer(self._name, job), measure_s=seconds))

    @in_thread("watch")
    def watch(self) -> None:
        """Never returns."""
        while True:
            time.sleep(1e6)
