"""The tasks of an experiment, and its objectives over them, of what a fitness file says."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from evomerge.errors import ConfigurationError, EvomergeError, Problem, nearest
from evomerge.experiment.groups import expand_groups, spread_weights
from evomerge.fitness import TASKS, make_task, with_others
from evomerge.fitness.config import FitnessConfig
from evomerge.fitness.prompts import POSITIONS
from evomerge.protocols import Task
from evomerge.records import ItemId, Objective
from evomerge.zoo import zoo_path

COMPARED = frozenset({"score", "margin", "loglikelihood"})  # columns that hang on right answers


def make_tasks(
    entries: Mapping[str, dict[str, Any]], python_tasks: Mapping[str, Task] | None = None
) -> dict[str, Task]:
    """The tasks of a fitness; python tasks were made by the caller.

    Raises:
        ConfigurationError: the problems of all tasks at once.
    """
    tasks: dict[str, Task] = {}
    problems: list[Problem] = []
    for name, entry in entries.items():
        try:
            tasks[name] = (python_tasks or {}).get(name) or make_task(name, entry)
        except EvomergeError as error:
            problems += [Problem(f"task {name}", str(p)) for p in error.problems]
    if problems:
        raise ConfigurationError(problems)
    return tasks


def clock_warning(tasks: Mapping[str, Task]) -> str | None:
    """What a user should know where a task measures time; None where none does."""
    timed = [name for name, task in tasks.items() if not getattr(task, "deterministic", True)]
    if not timed:
        return None
    return (
        f"task {', '.join(timed)} measures time: the search will not be the same when it is run "
        "again, and workers that share processors slow each other (pool: {workers: 1})"
    )


def answer_warnings(tasks: Mapping[str, Task], objectives: Sequence[Objective]) -> Iterator[str]:
    """What a user should know of items to which no answer is right."""
    for name, items in _unanswered(tasks, objectives).items():
        have = "has" if len(items) == 1 else "have"
        of_all = f"{len(items)} of {len(tasks[name].items)} items"
        yield f"task {name}: {of_all} {have} no answer (first: item {items[0]})"


def check_answers(tasks: Mapping[str, Task], objectives: Sequence[Objective]) -> None:
    """Refuse tasks in which no item has an answer.

    Raises:
        ConfigurationError: naming them all.
    """
    hint = "doc_to_target of the task finds none in its data"
    problems = [
        Problem(f"task {name}", f"none of its {len(items)} items has an answer", hint)
        for name, items in _unanswered(tasks, objectives).items()
        if len(items) == len(tasks[name].items)
    ]
    if problems:
        raise ConfigurationError(problems)


def _unanswered(
    tasks: Mapping[str, Task], objectives: Sequence[Objective]
) -> dict[str, Sequence[ItemId]]:
    """Task -> its items without an answer, where an objective compares what models say with it.

    Agreement, and a column such as the length, need no answers.
    """
    compared = {
        name
        for objective in objectives
        if objective.column in COMPARED and not objective.agreement
        for name in objective.weights
    }
    found = {n: getattr(task, "unanswered", ()) for n, task in tasks.items() if n in compared}
    return {name: items for name, items in found.items() if items}


def check_teachers(tasks: Mapping[str, Task], models: Sequence[str]) -> None:
    """Refuse tasks whose teacher is not there.

    Raises:
        ConfigurationError: naming them all.
    """
    problems = [
        Problem(f"task {name} teacher", f"no model {teacher!r}", nearest(teacher, models))
        for name, task in tasks.items()
        if (teacher := getattr(task, "teacher", None)) is not None and teacher not in models
    ]
    if problems:
        raise ConfigurationError(problems)


def check_models(
    tasks: Mapping[str, Task], entries: Mapping[str, Mapping[str, Any]], config: Mapping[str, Any]
) -> None:
    """Refuse what no model of the base's kind can be asked, as far as its config.json tells.

    Raises:
        ConfigurationError: a task needs more positions than the model has, or other classes.
    """
    problems: list[Problem] = []
    most = positions_of(config)
    for name, task in tasks.items():
        entry = entries.get(name, {})
        kind = TASKS.get(str(entry.get("kind", "lm_eval")))
        if kind is not None and most is not None:
            options = {k: v for k, v in entry.items() if k in kind.options.model_fields}
            needed = kind.options.model_validate(options).positions
            if needed > most:
                what = f"needs at least {needed} positions, the model has {most}"
                problems.append(Problem(f"task {name}", what))
        if (look := getattr(task, "problems_with", None)) is not None:
            problems += look(config)
    if problems:
        raise ConfigurationError(problems)


def positions_of(config: Mapping[str, Any]) -> int | None:
    """How many positions a model has; None where its config.json does not tell."""
    text_config = config.get("text_config") or config
    known = (text_config.get(name) for name in POSITIONS)
    return next((int(value) for value in known if value is not None), None)


def task_entries(config: FitnessConfig, *, allow_code: bool) -> dict[str, dict[str, Any]]:
    """Each task's entry in the fitness file, with groups as the tasks that they hold.

    allow_code: whether code may run, which is the user's to say: what an entry says of it itself
        is not listened to.

    Raises:
        ConfigurationError: a task of a zoo that is not there, or of a group.
    """
    expanded = expand_groups(_resolved(config))
    return {name: {**entry, "allow_code": allow_code} for name, entry in expanded.items()}


def objectives_over(config: FitnessConfig, num_items: Mapping[str, int]) -> tuple[Objective, ...]:
    """The objectives of a fitness file over the tasks that are made of its entries.

    num_items: task -> number of its items, where groups are among the entries.
    """
    return spread_weights(config.all_objectives(), _resolved(config), num_items)


def _resolved(config: FitnessConfig) -> dict[str, dict[str, Any]]:
    """The entries of a fitness file, with the files of a zoo's tasks."""
    entries: dict[str, dict[str, Any]] = {}
    problems: list[Problem] = []
    for name, entry in config.tasks.items():
        entries[name] = dict(entry)
        try:
            if str(entry.get("path", "")).startswith("zoo:"):
                entries[name]["path"] = str(zoo_path(entry["path"]))
        except EvomergeError as error:
            problems += [Problem(f"task {name}", str(p)) for p in error.problems]
    if problems:
        raise ConfigurationError(problems)
    wanted = {task for objective in config.all_objectives() for task in objective.weights}
    return with_others(entries, wanted)
