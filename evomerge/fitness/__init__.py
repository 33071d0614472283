"""Fitness: what is asked of a model (tasks), and what the answers are worth (estimators)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from evomerge.documents import Document, Misfit, parse, refuse
from evomerge.errors import ConfigurationError, nearest
from evomerge.protocols import Task

PYTHON_TASK = "python"  # a function that a caller of evomerge.search holds; no file can name it


class LmEvalOptions(BaseModel):
    """What a fitness file may say of a task of lm-eval; see `LmEvalTask`.

    Whether a task's own code may run is not among it: only the user can say so, for a whole run.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    task: str
    path: str | None = None
    metric: str | None = None
    filter: str | None = None
    num_fewshot: int | None = Field(default=None, ge=0)
    batch_size: int = Field(default=128, ge=1)
    limit: int | None = Field(default=None, ge=1)
    overrides: dict[str, Any] | None = None
    chat_template: bool = False
    fewshot_as_multiturn: bool = False
    max_new_tokens: int | None = Field(default=None, ge=1)
    shared_prefix: bool | None = None
    higher_is_better: bool | None = None

    @model_validator(mode="after")
    def _turns_need_a_chat(self) -> LmEvalOptions:
        if self.fewshot_as_multiturn and not self.chat_template:
            refuse(self, [Misfit(("fewshot_as_multiturn",), "goes with `chat_template: true`")])
        return self


@dataclass(frozen=True)
class TaskKind:
    """Where a kind of task lives (it is imported when it is first made), and its options."""

    summary: str
    module: str
    name: str
    options: type[BaseModel]


TASKS = {
    "lm_eval": TaskKind(
        "a task of lm-evaluation-harness, its own or from a YAML file",
        "evomerge.fitness.lm_eval_task",
        "LmEvalTask",
        LmEvalOptions,
    ),
}


def make_task(name: str, config: Mapping[str, Any]) -> Task:
    """The task that a fitness file describes; `allow_code` beside it is the run's own addition.

    Raises:
        ConfigurationError: its kind or its options are unknown, its data cannot be read, or it
            would run code that is not allowed.
    """
    options = dict(config)
    kind, allow_code = options.pop("kind", "lm_eval"), options.pop("allow_code", False)
    if kind == PYTHON_TASK:
        raise ConfigurationError(
            f"task {name}: a fitness that is a Python function is handed to evomerge.search()"
        )
    if kind not in TASKS:
        raise ConfigurationError(
            f"task {name}: unknown kind {kind!r} ({nearest(str(kind), TASKS)})"
        )
    parse(TASKS[kind].options, Document(options))
    made = getattr(import_module(TASKS[kind].module), TASKS[kind].name)
    task: Task = made(name, **options, allow_code=allow_code)
    return task
