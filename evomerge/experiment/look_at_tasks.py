"""What is wrong with the tasks of a fitness, as far as their files tell."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from evomerge.documents import Document
from evomerge.errors import ConfigurationError, Problem, nearest
from evomerge.fitness import with_others
from evomerge.fitness.config import FitnessConfig
from evomerge.fitness.estimators.kinds import HISTORY
from evomerge.fitness.options import needs_code
from evomerge.fitness.split import split_items
from evomerge.zoo import PREFIX, check_reference


def missing(where: str, path: Path, what: str = "no such file") -> Iterator[Problem]:
    """That there is nothing at a path, and what there is that is called nearly so."""
    if path.exists():
        return
    parent = path.parent
    while not parent.is_dir():
        path, parent = parent, parent.parent
    names = [p.name for p in parent.iterdir() if not p.name.startswith(".")]
    yield Problem(where, f"{what}: {path}", nearest(path.name, names))


def task_problems(
    fitness: Document, config: FitnessConfig | None, models: list[str]
) -> Iterator[Problem]:
    """Files that are not there or lack the task, names of others that there are not, and splits.

    fitness: as it is written. config: what was read of it, if it is right by itself. models: the
    experiment's, by name.
    """
    folder = fitness.path.parent if fitness.path else Path.cwd()
    tasks = fitness.data.get("tasks")
    entries = {
        str(name): entry
        for name, entry in (tasks.items() if isinstance(tasks, Mapping) else ())
        if isinstance(entry, Mapping)
    }
    counts: dict[str, int] = {}
    for name, entry in entries.items():
        place = ("tasks", name)
        found = list(_file_problems(fitness, place, entry, folder, counts))
        yield from found
        teacher = entry.get("teacher")
        if isinstance(teacher, str) and teacher not in models:
            where = fitness.where((*place, "teacher"))
            yield Problem(where, f"no model {teacher!r}", nearest(teacher, models))
    yield from _of_problems(fitness, entries)
    estimator = fitness.data.get("estimator")
    if isinstance(estimator, Mapping):
        yield from _pool_problems(fitness, ("estimator",), estimator, folder)
    yield from _split_problems(fitness, config, counts)


def _of_problems(fitness: Document, entries: Mapping[str, Mapping[str, Any]]) -> Iterator[Problem]:
    """Tasks that use the prompts of a task that has none to give."""
    if any(not isinstance(entry.get("of", ""), str) for entry in entries.values()):
        return
    try:
        with_others(entries, ())
    except ConfigurationError as error:
        for problem in error.problems:
            name = problem.where.removeprefix("task ").removesuffix(" of")
            yield Problem(fitness.where(("tasks", name, "of")), problem.what, problem.hint)


def _file_problems(
    fitness: Document,
    place: tuple[str, ...],
    entry: Mapping[str, Any],
    folder: Path,
    counts: dict[str, int],
) -> Iterator[Problem]:
    """What is wrong with the files of one task; how many items they hold goes to `counts`."""
    kind, path = entry.get("kind", "lm_eval"), entry.get("path")
    where = fitness.where((*place, "path"))
    if needs_code(kind):
        file = kind.removeprefix("python:").rpartition(":")[0]
        if file:
            yield from missing(fitness.where((*place, "kind")), (folder / file).resolve())
        return
    if not isinstance(path, str):
        return
    if path.startswith(PREFIX):
        try:
            check_reference(path)
        except ConfigurationError as error:
            yield from (Problem(where, p.what, p.hint) for p in error.problems)
        return
    file = (folder / path).resolve()
    if not file.exists():
        yield from missing(where, file, "no such file or folder")
        return
    if kind == "lm_eval":
        yield from _lm_eval_problems(fitness, place, entry, file, counts)
    elif kind in ("perplexity", "entropy", "teacher_kl") and (number := num_records(file)):
        counts[place[-1]] = _at_most(number, entry)


def named_tasks(path: Path) -> list[str]:
    """The tasks that a file of lm-eval, or a folder of them, names."""
    names = []
    for file in [path] if path.is_file() else sorted(path.rglob("*.yaml")):
        data = _task_file(file) or {}
        if isinstance(name := data.get("task"), str):
            names.append(name)
    return names


def _at_most(number: int, entry: Mapping[str, Any]) -> int:
    limit = entry.get("limit")
    return min(number, limit) if isinstance(limit, int) and limit > 0 else number


def _lm_eval_problems(
    fitness: Document,
    place: tuple[str, ...],
    entry: Mapping[str, Any],
    path: Path,
    counts: dict[str, int],
) -> Iterator[Problem]:
    """A task that is in none of the files, or whose data are not there."""
    found: dict[str, tuple[Path, Mapping[str, Any]]] = {}
    for file in [path] if path.is_file() else sorted(path.rglob("*.yaml")):
        data = _task_file(file)
        if data is None:
            return  # whoever makes the task says what is wrong with the file
        for key in ("task", "group"):
            if isinstance(name := data.get(key), str):
                found[name] = (file, data)
    wanted = entry.get("task")
    if not isinstance(wanted, str) or not found:
        return
    if wanted not in found:
        what = f"{path} has no task {wanted!r}"
        yield Problem(fitness.where((*place, "task")), what, nearest(wanted, found))
        return
    file, data = found[wanted]
    files = _data_files(data)
    lines = Document(data, file, _lines_of(file))
    for split, name in files.items():
        at = ("dataset_kwargs", "data_files", split)
        yield from missing(lines.where(at), (file.parent / name).resolve())
    split = data.get("test_split", data.get("validation_split"))
    if isinstance(split, str) and split in files and "process_docs" not in data:
        number = num_records((file.parent / files[split]).resolve())
        if number and "overrides" not in entry:
            counts[place[-1]] = _at_most(number, entry)


class _AnyTags(yaml.SafeLoader):
    """Reads the tags that lm-eval has for code as nothing: no code runs for a first look."""


_AnyTags.add_multi_constructor("!", lambda loader, suffix, node: None)  # noqa: ARG005


def _task_file(file: Path) -> Mapping[str, Any] | None:
    """What a file of lm-eval says by itself; None if it cannot be read."""
    try:
        data = yaml.load(file.read_text(encoding="utf-8"), Loader=_AnyTags)  # noqa: S506 - safe
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        return None
    return data if isinstance(data, dict) else {}


def _lines_of(file: Path) -> dict[tuple[str | int, ...], int]:
    """Where the data's files stand."""
    from evomerge.yaml_files import read_yaml

    try:
        return read_yaml(file).lines
    except ConfigurationError:
        return {}


def _data_files(data: Mapping[str, Any]) -> dict[str, str]:
    """Split -> a file beside the task's; of other kinds of data nothing is known here."""
    options = data.get("dataset_kwargs")
    files = options.get("data_files") if isinstance(options, Mapping) else None
    if not isinstance(files, Mapping):
        return {}
    return {
        str(split): name
        for split, name in files.items()
        if isinstance(name, str) and "://" not in name and "*" not in name
    }


def num_records(file: Path) -> int | None:
    """How many texts or records a .txt, .jsonl or .csv file holds; None if that is not known."""
    try:
        with file.open(encoding="utf-8-sig", newline="") as opened:
            if file.suffix == ".csv":
                return max(0, sum(1 for row in csv.reader(opened) if row) - 1)
            if file.suffix in (".txt", ".jsonl"):
                return sum(1 for line in opened if line.strip())
            if file.suffix == ".json":
                data = json.load(opened)
                return len(data) if isinstance(data, list) else None
    except (OSError, ValueError, csv.Error, RecursionError):
        return None  # whoever reads it says so
    return None


def _split_problems(
    fitness: Document, config: FitnessConfig | None, counts: Mapping[str, int]
) -> Iterator[Problem]:
    """Tasks that have fewer items than the split wants."""
    if config is None or not counts:
        return
    split = config.split
    items = {name: range(count) for name, count in counts.items()}
    try:
        split_items(items, split.search, split.fresh, split.holdout, split.seed)
    except ConfigurationError as error:
        for problem in error.problems:
            name = problem.where.removeprefix("task ")
            what = problem.what.replace("items, the split asks", "items, the split asks for")
            yield Problem(fitness.where(("split",)), f"{name} has {what}", problem.hint)


def _pool_problems(
    fitness: Document, place: tuple[str, ...], estimator: Mapping[str, Any], folder: Path
) -> Iterator[Problem]:
    """Files of other models' answers that are not there."""
    for key, value in estimator.items():
        at = (*place, str(key))
        if key == "pool":
            pools = value if isinstance(value, Mapping) else {"": value}
            for task, path in pools.items():
                if isinstance(path, str) and path != HISTORY:
                    where = fitness.where((*at, str(task)) if task else at)
                    yield from missing(where, (folder / path).resolve())
        elif isinstance(value, Mapping):
            yield from _pool_problems(fitness, at, value, folder)
