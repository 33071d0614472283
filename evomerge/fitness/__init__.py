"""Fitness: what is asked of a model (tasks), and what the answers are worth (estimators)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from evomerge.documents import Document, parse
from evomerge.errors import ConfigurationError, Problem, nearest
from evomerge.fitness.options import (
    ClassificationOptions,
    EntropyOptions,
    LatencyOptions,
    LmEvalOptions,
    PerplexityOptions,
    PythonOptions,
    TaskOptions,
    TeacherKLOptions,
    needs_code,
)
from evomerge.protocols import Task

PYTHON_TASK = "python"  # a function that a caller of evomerge.search holds; no file can name it


@dataclass(frozen=True)
class TaskKind:
    """Where a kind of task lives (it is imported when it is first made), and its options."""

    summary: str
    module: str
    name: str
    options: type[TaskOptions]


TASKS = {
    "lm_eval": TaskKind(
        "a task of lm-evaluation-harness, its own or from a YAML file",
        "evomerge.fitness.lm_eval_task",
        "LmEvalTask",
        LmEvalOptions,
    ),
    "perplexity": TaskKind(
        "how well texts are predicted",
        "evomerge.fitness.perplexity_task",
        "PerplexityTask",
        PerplexityOptions,
    ),
    "entropy": TaskKind(
        "how sure the model is of its answers to prompts; no labels",
        "evomerge.fitness.entropy_task",
        "EntropyTask",
        EntropyOptions,
    ),
    "teacher_kl": TaskKind(
        "how near the model stays to an expert on prompts; no labels",
        "evomerge.fitness.teacher_kl_task",
        "TeacherKLTask",
        TeacherKLOptions,
    ),
    "classification": TaskKind(
        "accuracy of a transformers classifier of texts or images",
        "evomerge.fitness.classification_task",
        "ClassificationTask",
        ClassificationOptions,
    ),
    "latency": TaskKind(
        "seconds per token on this machine; not the same twice",
        "evomerge.fitness.latency_task",
        "LatencyTask",
        LatencyOptions,
    ),
}


def make_task(name: str, config: Mapping[str, Any]) -> Task:
    """The task that a fitness file describes.

    `allow_code` beside it is the run's own addition, and so is `of_entry`, the description of the
    task that its `of` names; see `with_others`.

    Raises:
        ConfigurationError: its kind or its options are unknown, its data cannot be read, or it
            would run code that is not allowed.
    """
    options = dict(config)
    kind, allow_code = options.pop("kind", "lm_eval"), options.pop("allow_code", False)
    other = options.pop("of_entry", None)
    if needs_code(kind):
        from evomerge.fitness.python_file import PythonFileTask

        parse(PythonOptions, Document(options))
        code = str(kind).removeprefix("python:")
        return PythonFileTask(name, code, allow_code=allow_code, **options)
    if kind == PYTHON_TASK:
        raise ConfigurationError(
            f"task {name}: a fitness that is a Python function is handed to evomerge.search()"
        )
    if not isinstance(kind, str) or kind not in TASKS:
        raise ConfigurationError(
            f"task {name}: unknown kind {kind!r} ({nearest(str(kind), TASKS)})"
        )
    parse(TASKS[kind].options, Document(options))
    if other is not None:
        options["of"] = make_task(options["of"], {**other, "allow_code": allow_code})
    made = getattr(import_module(TASKS[kind].module), TASKS[kind].name)
    task: Task = made(name, **options, allow_code=allow_code)
    return task


def with_others(
    entries: Mapping[str, Mapping[str, Any]], wanted: Collection[str]
) -> dict[str, dict[str, Any]]:
    """Each task's entry, with that of the task whose prompts it uses.

    A task that gives others its prompts, and is not wanted for itself, is not asked of anybody.

    Raises:
        ConfigurationError: there is no such task, or it uses another's prompts itself.
    """
    problems = []
    found = {}
    for name, entry in entries.items():
        found[name] = dict(entry)
        if (of := entry.get("of")) is None or needs_code(entry.get("kind")):
            continue
        if of not in entries:
            problems.append(Problem(f"task {name} of", f"no task {of!r}", nearest(of, entries)))
        elif entries[of].get("of") is not None:
            what = f"{of!r} uses the prompts of another task itself"
            problems.append(Problem(f"task {name} of", what, f"name {entries[of]['of']!r}"))
        else:
            found[name]["of_entry"] = dict(entries[of])
    if problems:
        raise ConfigurationError(problems)
    lent = {entry["of"] for entry in found.values() if "of_entry" in entry}
    return {name: entry for name, entry in found.items() if name in wanted or name not in lent}
