"""How much of merging disappears when the next recipe is prepared beside a measurement.

    python benchmarks/overlap.py                # the tiny family
    python benchmarks/overlap.py smollm2        # SmolLM2: some ten minutes

A worker runs the same jobs in turns with and without a second model, in this process, with one
thread. Each job is told ahead as soon as the one before it has begun. Measurements either wait, as
for a GPU or for another process, or are real ones on the CPU. "hidden" is the time that was gained,
as a share of the time that merging takes. "one core" pins the process to one processor: there
merging and measuring only take turns. The median over rounds is reported. Nothing can hide the
first merge of a round: of n jobs, (n - 1) / n is all that can be gained.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from evomerge.pools.worker import Worker, WorkerSpec
from evomerge.recipe import Recipe
from evomerge.records import Job, Responses
from evomerge.zoo import ZOOS, zoo_path

OPERATORS = ("task_arithmetic", "ties")
SIZES = {"tiny": (0.02, 4), "smollm2": (1.0, 3)}  # seconds to wait, forward passes


@dataclass
class Waiting:
    """A task that takes its time and no processor."""

    seconds: float
    name: str = "waiting"
    fingerprint: str = ""
    items: Sequence[int] = range(1)

    def respond(self, model: Any, items: Sequence[int]) -> Responses:  # noqa: ARG002
        """Zeros, later."""
        time.sleep(self.seconds)
        return Responses("waiting", tuple(items), {"score": np.zeros(len(items), np.float32)})


@dataclass
class Forward:
    """A task that is one forward pass of made-up tokens after another."""

    passes: int
    name: str = "forward"
    fingerprint: str = ""
    items: Sequence[int] = range(1)

    def respond(self, model: Any, items: Sequence[int]) -> Responses:
        """Zeros, after some work."""
        with torch.inference_mode():
            for _ in range(self.passes):
                model.module(torch.arange(128)[None] % 50)
        return Responses("forward", tuple(items), {"score": np.zeros(len(items), np.float32)})


def jobs_of(models: dict[str, str], operator: str, task: str, count: int) -> list[Job]:
    """Candidates that differ in all their weights."""
    experts = [name for name in models if name != "base"]
    jobs = []
    for turn in range(count):
        weights = {name: 0.2 + 0.01 * (turn + i) for i, name in enumerate(experts)}
        merge = {"operator": operator, "sources": experts, "parameters": {"weight": weights}}
        recipe = Recipe.model_validate({"base": "base", "models": models, "default": merge})
        jobs.append(Job(turn, turn, recipe, {task: (0,)}))
    return jobs


def seconds(worker: Worker, jobs: list[Job]) -> tuple[float, float, float]:
    """Of all jobs together; and of these, merging and measuring."""
    start = time.perf_counter()
    outcomes = []
    for job, following in zip(jobs, [*jobs[1:], None], strict=True):
        if following is not None:
            worker.prepare(following)
        outcomes.append(worker.run(job))
    total = time.perf_counter() - start
    assert all(outcome.failure is None for outcome in outcomes), outcomes[0].failure
    merge_s = sum(outcome.merge_s for outcome in outcomes)
    return total, merge_s, sum(outcome.measure_s for outcome in outcomes)


def compare(family: str, operator: str, task: Any, count: int, rounds: int) -> dict[str, Any]:
    """Both ways in turns, after a round that prepares what is kept."""
    models = {name: str(zoo_path(f"zoo:{family}/{name}")) for name in ZOOS[family].models}
    specs = [
        WorkerSpec(models, "base", python_tasks={task.name: task}, ahead=ahead)
        for ahead in (False, True)
    ]
    workers = [Worker(spec, "driver") for spec in specs]
    jobs = jobs_of(models, operator, task.name, count)
    times: list[list[tuple[float, float, float]]] = [[], []]
    for number in range(rounds + 1):
        for worker, found in zip(workers, times, strict=True):
            one = seconds(worker, jobs)
            if number:
                found.append(one)
    median = [[statistics.median(column) for column in zip(*found, strict=True)] for found in times]
    (alone, merge_s, measure_s), (beside, _, measure_beside_s) = median
    return {
        "models": family,
        "operator": operator,
        "task": task.name,
        "merge_s": merge_s / count,
        "measure_s": measure_s / count,
        "measure_beside_s": measure_beside_s / count,
        "job_s": alone / count,
        "job_beside_s": beside / count,
        "hidden": (alone - beside) / merge_s,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("family", nargs="?", choices=SIZES, default="tiny")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=6)
    options = parser.parse_args()
    print(f"{platform.machine()}, {os.cpu_count()} processors, torch {torch.__version__}")
    wait_s, passes = SIZES[options.family]
    processors = os.sched_getaffinity(0)
    for operator in OPERATORS:
        cases = [(Waiting(wait_s), processors), (Forward(passes), processors)]
        for task, allowed in [*cases, (Forward(passes), {min(processors)})]:
            os.sched_setaffinity(0, allowed)  # of this thread, and of those that it starts
            found = compare(options.family, operator, task, options.jobs, options.rounds)
            found["processors"] = len(allowed)
            shown = {k: round(v, 4) if isinstance(v, float) else v for k, v in found.items()}
            print(json.dumps(shown), flush=True)
            os.sched_setaffinity(0, processors)


if __name__ == "__main__":
    main()
