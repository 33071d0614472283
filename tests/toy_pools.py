"""Toy jobs and toy searches for pools of any kind, and what must come of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from toy_tasks import FileModule, ToyTask
from toys import ESTIMATORS, SEARCHERS, SPLIT, Count

from evomerge.documents import Document
from evomerge.experiment import run as runs
from evomerge.experiment.config import parse_experiment
from evomerge.experiment.wire import InMemory
from evomerge.pools import PoolConfig
from evomerge.pools.inline import InlinePool
from evomerge.pools.local import local_pool
from evomerge.pools.worker import WorkerSpec
from evomerge.recipe import Merge, ModelSource, Recipe
from evomerge.records import Job, Outcome

PATIENCE_S = 60.0  # the first worker waits for the imports of the process that it is forked from
MakePool = Callable[[WorkerSpec, Path | None], Any]


def make_spec(models: dict[str, str], fault: str = "", **options: Any) -> WorkerSpec:
    return WorkerSpec(
        models=models,
        base="base",
        build=FileModule(models["base"], fault),
        python_tasks={"first": ToyTask("first", **options), "second": ToyTask("second")},
    )


def make_jobs(models: dict[str, str], count: int) -> list[Job]:
    sources = {name: ModelSource(path=path) for name, path in models.items()}
    return [
        Job(
            number,
            number,
            Recipe(
                base="base",
                models=sources,
                default=Merge(operator="task_arithmetic", parameters={"weight": number / count}),
            ),
            {"first": (0, 3, 9), "second": tuple(range(number + 1))},
        )
        for number in range(count)
    ]


def collect(pool: Any, jobs: Sequence[Job]) -> dict[int, Outcome]:
    """All outcomes by job."""
    for job in jobs:
        pool.submit(job)
    outcomes: dict[int, Outcome] = {}
    until = time.monotonic() + PATIENCE_S
    while len(outcomes) < len(jobs) and time.monotonic() < until:
        for outcome in pool.collect(0.5):
            assert outcome.job.id not in outcomes
            outcomes[outcome.job.id] = outcome
    assert len(outcomes) == len(jobs)
    return outcomes


def answers(outcomes: dict[int, Outcome]) -> dict[int, Any]:
    return {
        number: (
            [(r.task, r.items.tolist(), r.columns["score"].tolist()) for r in outcome.responses],
            outcome.failure,
        )
        for number, outcome in sorted(outcomes.items())
    }


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def all_gone(pids: Sequence[int], within_s: float) -> bool:
    until = time.monotonic() + within_s
    while any(map(is_alive, pids)) and time.monotonic() < until:
        time.sleep(0.05)
    return not any(map(is_alive, pids))


def search(
    models: dict[str, str],
    out: Path,
    spec: WorkerSpec,
    workers: int,
    kind: str,
    make: MakePool | None = None,
    candidates: int = 40,
    watchers: tuple[Any, ...] = (),
) -> Path:
    """A search whose every part is real; the tasks are toys, and `make` makes the pool."""
    names = ["first", "second"]
    config = parse_experiment(
        Document(
            {
                "base": models["base"],
                "experts": {"left": models["left"], "right": models["right"]},
                "space": {
                    "kind": "weights",
                    "operator": "task_arithmetic",
                    "search": {"weight": {"per": ["expert", "layer"], "range": [0, 1.2]}},
                },
                "fitness": {
                    "tasks": {name: {"kind": "python"} for name in names},
                    "objectives": {"mean": {"tasks": names}},
                    "estimator": ESTIMATORS["racing"],
                    "split": SPLIT,
                    "finalists": 3,
                },
                "searcher": SEARCHERS[kind],
                "budget": {"candidates": candidates},
                "in_flight": 12 if kind == "random" else 8,
                "cohort": 3 if kind == "random" else 8,
                "pool": {"workers": workers},
            }
        )
    )
    given = InMemory(build=spec.build, python_tasks=spec.python_tasks)

    def pool(config: PoolConfig, made: WorkerSpec, log: Path | None) -> Any:
        sent = replace(made, build=spec.build, python_tasks=spec.python_tasks)
        if make is not None:
            return make(sent, log)
        return local_pool(sent, workers, log) if workers else InlinePool(sent)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "make_pool", pool)
        patch.setattr(runs, "write_pictures", lambda *_: None)
        return runs.run_experiment(config, out, in_memory=given, watchers=(Count(), *watchers))
