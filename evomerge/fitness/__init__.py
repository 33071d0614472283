"""Fitness: what is asked of a model (tasks), and what the answers are worth (estimators)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from evomerge.errors import ConfigurationError, nearest
from evomerge.fitness.estimators import ESTIMATORS
from evomerge.protocols import Estimator, Task
from evomerge.records import ItemId, Objective


@dataclass(frozen=True)
class TaskKind:
    """Where a kind of task lives; it is imported when it is first made."""

    summary: str
    module: str
    name: str


TASKS = {
    "lm_eval": TaskKind(
        "a task of lm-evaluation-harness, its own or from a YAML file",
        "evomerge.fitness.lm_eval_task",
        "LmEvalTask",
    ),
}


def make_task(name: str, config: Mapping[str, Any]) -> Task:
    """The task that a fitness file describes.

    Raises:
        ConfigurationError: its kind or its options are unknown, or its data cannot be read.
    """
    options = dict(config)
    kind = options.pop("kind", "lm_eval")
    if kind not in TASKS:
        raise ConfigurationError(f"task {name}: unknown kind {kind!r} ({nearest(kind, TASKS)})")
    made = getattr(import_module(TASKS[kind].module), TASKS[kind].name)
    task: Task = made(name, **options)
    return task


def make_estimator(
    config: Mapping[str, Any],
    objectives: Sequence[Objective],
    items: Mapping[str, Sequence[ItemId]],
    seed: int,
) -> Estimator:
    """The estimator that a fitness file describes, over the search items of each task.

    Raises:
        ConfigurationError: its kind or its options are unknown, or ask for more items than are.
    """
    options = dict(config)
    kind = options.pop("kind", "full")
    if kind not in ESTIMATORS:
        raise ConfigurationError(f"unknown estimator {kind!r} ({nearest(kind, ESTIMATORS)})")
    return ESTIMATORS[kind].make(objectives, items, seed, options)
