"""What a fitness file may say, and the reading of it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationInfo, field_validator, model_validator

from evomerge.documents import Document, Misfit, Strict, check_options, collect, parse, refuse
from evomerge.errors import ConfigurationError, Problem, nearest
from evomerge.fitness import PYTHON_TASK, TASKS
from evomerge.fitness.estimators import ESTIMATORS
from evomerge.fitness.estimators.kinds import HISTORY
from evomerge.fitness.options import ALLOW_CODE, PythonOptions, needs_code
from evomerge.fitness.split import Amount
from evomerge.merging.costs import Cost
from evomerge.records import Objective

_ESTIMATOR_OPTIONS = {kind: estimator.options for kind, estimator in ESTIMATORS.items()}
_TASK_OPTIONS = {kind: task.options for kind, task in TASKS.items()}
_NOT_FOR_FILES = {  # keys of a task's entry that the run adds
    "allow_code": ("a file cannot give itself leave to run code", ALLOW_CODE),
    "of_entry": ("unknown key", "`of` names the task whose prompts to use"),
}


class ObjectiveConfig(Strict):
    """What is good: a weighted mean over tasks of one response column, or a small cost.

    agreement: with how many neighbours a candidate's answers are compared, instead of with labels.
    """

    tasks: dict[str, float] = Field(default_factory=dict)
    column: str = "score"
    minimize: bool = False
    cost: Cost | None = None
    agreement: int = Field(default=0, ge=0)

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, data: Any) -> Any:
        """`name: task` and `tasks: [a, b]` stand for equal weights."""
        if isinstance(data, str):
            return {"tasks": {data: 1.0}}
        if isinstance(data, Mapping) and isinstance(data.get("tasks"), list):
            return {**data, "tasks": dict.fromkeys(data["tasks"], 1.0)}
        return data

    @model_validator(mode="after")
    def _tasks_or_cost(self) -> ObjectiveConfig:
        misfits = []
        if self.cost is None and not self.tasks:
            misfits.append(Misfit(("tasks",), "names no task", "or name a `cost`"))
        if self.cost is not None:
            what = "a cost is known without asking the model anything: remove it, or the cost"
            beside = self.model_fields_set & {"tasks", "column", "agreement"}
            misfits += [Misfit((key,), what) for key in sorted(beside)]
            if "minimize" in self.model_fields_set and not self.minimize:
                misfits.append(Misfit(("minimize",), "a cost is always minimised"))
        refuse(self, misfits)
        return self

    def objective(self, name: str) -> Objective:
        """With weights that sum to one."""
        if self.cost is not None:
            return Objective(name, {}, sign=-1, cost=self.cost)
        total = sum(self.tasks.values())
        weights = {task: weight / total for task, weight in self.tasks.items()}
        column = "answer" if self.agreement and self.column == "score" else self.column
        sign = -1 if self.minimize else 1
        return Objective(name, weights, column, sign, agreement=self.agreement)

    @field_validator("tasks")
    @classmethod
    def _positive(cls, tasks: dict[str, float]) -> dict[str, float]:
        if any(weight <= 0 for weight in tasks.values()):
            raise ValueError("task weights must be positive")
        return tasks


class SplitConfig(Strict):
    """How many items of each task serve what: a number of them, or a share such as 0.5.

    search: for the searcher. fresh: seen by no searcher, to choose among its best.
    holdout: for the report, after everything is chosen; None is all the rest.
    """

    search: Amount = 240
    fresh: Amount = 240
    holdout: Amount | None = None
    seed: int = Field(default=0, ge=0, lt=2**64)

    @field_validator("search", "fresh", "holdout")
    @classmethod
    def _number_or_share(cls, amount: Amount | None, info: ValidationInfo) -> Amount | None:
        if amount is None:
            return None
        least = 0 if info.field_name == "fresh" else 1
        if amount == int(amount) and amount >= least:  # 240.0 is 240
            return int(amount)
        if not 0 < amount < 1:
            raise ValueError(f"should be a number of items from {least}, or a share below 1")
        return amount

    @model_validator(mode="after")
    def _something_left(self) -> SplitConfig:
        amounts = (self.search, self.fresh, self.holdout)
        shares = sum(amount for amount in amounts if isinstance(amount, float))
        if shares > 1 + 1e-9 or (shares > 1 - 1e-9 and self.holdout is None):
            what = f"the shares sum to {shares:g}: nothing is left for the rest"
            refuse(self, [Misfit(("search",), what)])
        return self


class SelectConfig(Strict):
    """What "best" means: the largest weighted mean of the objectives, or the front's knee.

    at_least: what the choice must reach. An objective that is minimised counts as its negative,
    here as in all tables: `at_least: {loss: -2.5}`.
    """

    kind: Literal["weights", "knee"] = "weights"
    weights: dict[str, float] = Field(default_factory=dict)
    at_least: dict[str, float] = Field(default_factory=dict)

    @field_validator("weights")
    @classmethod
    def _positive(cls, weights: dict[str, float]) -> dict[str, float]:
        if weights and (min(weights.values()) < 0 or not any(weights.values())):
            raise ValueError("weights must not be negative, and one must be positive")
        return weights


class FitnessConfig(Strict):
    """A fitness file."""

    tasks: dict[str, dict[str, Any]] = Field(min_length=1)
    objectives: dict[str, ObjectiveConfig] = Field(min_length=1)
    estimator: dict[str, Any] = Field(default_factory=lambda: {"kind": "full"})
    split: SplitConfig = SplitConfig()
    select: SelectConfig = SelectConfig()
    finalists: int = Field(default=8, ge=1)

    @model_validator(mode="after")
    def _names_exist(self) -> FitnessConfig:
        misfits = [
            Misfit(("objectives", name), f"no task {task!r}", nearest(task, self.tasks))
            for name, objective in self.objectives.items()
            for task in objective.tasks
            if task not in self.tasks
        ]
        misfits += [
            Misfit(("select", key, name), "no such objective", nearest(name, self.objectives))
            for key in ("weights", "at_least")
            for name in getattr(self.select, key)
            if name not in self.objectives
        ]
        if all(objective.cost is not None for objective in self.objectives.values()):
            what = "needs at least one task: what is cheapest is known without a search"
            misfits.append(Misfit(("objectives",), what))
        kind = self.estimator.get("kind", "full")
        if not isinstance(kind, str) or kind not in ESTIMATORS:
            hint = nearest(str(kind), ESTIMATORS)
            misfits.append(Misfit(("estimator", "kind"), f"unknown kind {kind!r}", hint))
        for name, entry in self.tasks.items():
            misfits += [
                Misfit(("tasks", name, key), *told)
                for key, told in _NOT_FOR_FILES.items()
                if key in entry
            ]
            kind = entry.get("kind", "lm_eval")
            if kind not in [*TASKS, PYTHON_TASK] and not needs_code(kind):
                hint = nearest(str(kind), TASKS)
                misfits.append(Misfit(("tasks", name, "kind"), f"unknown kind {kind!r}", hint))
        refuse(self, misfits)
        return self

    def all_objectives(self) -> tuple[Objective, ...]:
        """The objectives in their declared order."""
        return tuple(config.objective(name) for name, config in self.objectives.items())


def read_fitness(document: Document) -> FitnessConfig:
    """Validate a fitness file; its task files are relative to it.

    Raises:
        ConfigurationError: with every problem and its line.
    """
    folder = document.path.parent if document.path else Path.cwd()
    problems: list[Problem] = []
    if isinstance(document.data, dict) and isinstance(document.data.get("tasks"), dict):
        tasks = {
            name: _absolute_task(task, folder) for name, task in document.data["tasks"].items()
        }
        document = replace(document, data={**document.data, "tasks": tasks})
        kinds = (task.get("kind") for task in tasks.values() if isinstance(task, dict))
        options: dict[str, type[BaseModel]] = dict(_TASK_OPTIONS)
        options |= {str(kind): PythonOptions for kind in kinds if needs_code(kind)}
        for name in tasks:
            check_options(problems, document, ("tasks", name), options, "lm_eval", _NOT_FOR_FILES)
    if isinstance(document.data, dict) and isinstance(document.data.get("estimator"), dict):
        estimator = _absolute_pools(document.data["estimator"], folder)
        document = replace(document, data={**document.data, "estimator": estimator})
    check_options(problems, document, ("estimator",), _ESTIMATOR_OPTIONS, "full")
    config = collect(problems, partial(parse, FitnessConfig, document))
    if problems or config is None:
        raise ConfigurationError(problems)
    return config


def _absolute_task(task: Any, folder: Path) -> Any:
    """Paths of data and of code are relative to the fitness file."""
    if not isinstance(task, dict):
        return task
    made = dict(task)
    if isinstance(path := task.get("path"), str) and not path.startswith("zoo:"):
        made["path"] = str((folder / path).resolve())
    kind = task.get("kind", "")
    if needs_code(kind) and ":" in (code := kind.removeprefix("python:")):
        file, _, name = code.rpartition(":")
        made["kind"] = f"python:{(folder / file).resolve()}:{name}"
    return made


def pools_by_content(estimator: Mapping[str, Any]) -> dict[str, Any]:
    """An estimator's entry with the sha256 of its response pools' files instead of their paths."""
    return _with_pools(estimator, lambda path: hashlib.sha256(Path(path).read_bytes()).hexdigest())


def _absolute_pools(estimator: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """An estimator's entry with absolute paths of its response pools' files."""
    return _with_pools(estimator, lambda path: str((folder / path).resolve()))


def _with_pools(estimator: Mapping[str, Any], change: Callable[[str], str]) -> dict[str, Any]:
    """An estimator's entry with its response pools' files changed, however deep they stand."""

    def changed(path: Any) -> Any:
        return change(path) if isinstance(path, str) and path != HISTORY else path

    found: dict[str, Any] = {}
    for key, value in estimator.items():
        if key == "pool":
            pools = isinstance(value, Mapping)
            found[key] = {t: changed(p) for t, p in value.items()} if pools else changed(value)
        else:
            found[key] = _with_pools(value, change) if isinstance(value, Mapping) else value
    return found
