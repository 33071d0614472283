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

DATA_FILES = "data_files"


def missing(where: str, path: Path, what: str = "no such file") -> Iterator[Problem]:
    """That there is nothing at a path, and what there is that is called nearly so."""
    if path.exists():
        return
    wanted, parent = path, path.parent
    while not parent.is_dir():
        path, parent = parent, parent.parent
    names = [p.name for p in parent.iterdir() if not p.name.startswith(".")]
    # What else lies in a folder far above helps nobody.
    hint = nearest(path.name, names, only_close=path != wanted or parent == Path(parent.anchor))
    yield Problem(where, f"{what}: {path}", hint)


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
        has_own_keys = needs_code(entry.get("kind"))
        if isinstance(teacher, str) and teacher not in models and not has_own_keys:
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
    groups: set[str] = set()
    is_all = True  # whether these files name everything that can be meant
    for file in [path] if path.is_file() else sorted(path.rglob("*.yaml")):
        data = _task_file(file)
        if data is None:
            return  # whoever makes the task says what is wrong with the file
        if isinstance(name := data.get("task"), str):
            found.setdefault(name, (file, data))  # lm-eval takes the first, too
        groups |= _names_in(data.get("group")) | _names_in(data.get("tag"))
        is_group_file = path.is_file() and "group" in data  # lm-eval looks beside it, too
        is_all = is_all and "include" not in data and not is_group_file
    wanted = entry.get("task")
    if not isinstance(wanted, str) or not (found or groups):
        return
    if wanted in found:
        yield from _data_problems(*found[wanted])
        if "overrides" not in entry and (number := _num_items(*found[wanted])):
            counts[place[-1]] = _at_most(number, entry)
    elif is_all and wanted not in groups:
        what = f"{path} has no task {wanted!r}"
        yield Problem(fitness.where((*place, "task")), what, nearest(wanted, [*found, *groups]))


def _names_in(value: Any) -> set[str]:
    """A name, or a list of them."""
    return {v for v in (value if isinstance(value, list) else [value]) if isinstance(v, str)}


def _data_problems(file: Path, data: Mapping[str, Any]) -> Iterator[Problem]:
    """Data of a task that are not there."""
    lines = Document(data, file, _lines_of(file))
    for split, name in _data_files(data).items():
        at = ("dataset_kwargs", DATA_FILES, split)
        there = file.parent / name
        if not there.exists() and not any(there.parent.glob(there.name)):  # or a pattern
            yield from missing(lines.where(at), there.resolve())


def _num_items(file: Path, data: Mapping[str, Any]) -> int | None:
    """How many items a task has; None where only lm-eval can tell."""
    options = data.get("dataset_kwargs")
    if {"include", "process_docs"} & data.keys() or options is None or set(options) != {DATA_FILES}:
        return None
    files, split = _data_files(data), data.get("test_split", data.get("validation_split"))
    if not isinstance(split, str) or split not in files or data.get("dataset_path") == "text":
        return None
    return num_records((file.parent / files[split]).resolve())


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
    files = options.get(DATA_FILES) if isinstance(options, Mapping) else None
    if not isinstance(files, Mapping):
        return {}
    return {
        str(split): name
        for split, name in files.items()
        if isinstance(name, str) and "://" not in name
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
