"""mergekit-evolve's tasks as a fitness."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from evomerge.documents import Document
from evomerge.errors import ConfigurationError, Problem
from evomerge.experiment.mergekit_genome import EvolveFile, TaskEntry
from evomerge.fitness.lm_eval_files import line_of_task

SEARCH, FRESH = 0.5, 0.2  # shares of a task's items; the rest is the holdout
OBJECTIVE = "score"


def fitness_of(file: EvolveFile, document: Document, *, chat: bool) -> dict[str, Any]:
    """The fitness file that mergekit-evolve's tasks stand for.

    chat: whether prompts become conversations.

    Raises:
        ConfigurationError: a folder of tasks is not there.
    """
    here = document.path.parent if document.path else Path()
    folders = [(here / Path(folder).expanduser()).resolve() for folder in file.folders]
    if missing := [str(folder) for folder in folders if not folder.is_dir()]:
        where = document.where(("task_search_path",))
        raise ConfigurationError(Problem(where, f"no folder {one}") for one in missing)
    tasks, weights = {}, {}
    for entry in file.tasks:
        if entry.weight == 0:
            continue
        metric = entry.metric.partition(",")[0]
        name = entry.name if entry.name not in tasks else f"{entry.name}_{metric}"
        while name in tasks:
            name += "_"
        tasks[name] = _task(file, entry, _file_of(entry.name, folders, here), chat)
        weights[name] = abs(entry.weight)
    return {
        "tasks": tasks,
        "objectives": {OBJECTIVE: {"tasks": weights}},
        "split": {"search": SEARCH, "fresh": FRESH},
    }


def _task(file: EvolveFile, entry: TaskEntry, path: Path | None, chat: bool) -> dict[str, Any]:
    metric, _, filter_ = entry.metric.partition(",")
    found: dict[str, Any] = {
        "kind": "lm_eval",
        "task": entry.name,
        "metric": metric,
        "filter": filter_,
        # Its sum maximises weight times metric, whatever lm-eval says is better.
        "higher_is_better": entry.weight > 0,
    }
    if path is not None:
        found["path"] = str(path)
    if file.limit is not None:
        found["limit"] = round(file.limit / SEARCH)
    if file.num_fewshot is not None:
        found["num_fewshot"] = file.num_fewshot
    if chat:
        found |= {"chat_template": True, "fewshot_as_multiturn": file.fewshot_as_multiturn}
    return found


def _file_of(task: str, folders: list[Path], here: Path) -> Path | None:
    """A task's file: below the folders, else beside mergekit's; None for lm-eval's registry."""
    line = line_of_task(task)
    candidates = [file for folder in folders for file in sorted(folder.rglob("*.yaml"))]
    for file in [*candidates, *sorted(here.glob("*.yaml"))]:
        if line.search(file.read_text(encoding="utf-8", errors="replace")):
            return file.resolve()
    return None


def task_notes(file: EvolveFile, *, chat: bool) -> Iterator[str]:
    """What is measured otherwise than in mergekit-evolve."""
    yield (
        "mergekit-evolve reports on the very items that it searches on; here "
        f"{SEARCH:.0%} of each task's items serve the search, {FRESH:.0%} choose among the best, "
        "and the rest is the holdout"
    )
    if file.limit is not None:
        count = round(file.limit / SEARCH)
        yield f"limit {file.limit}: a task's first {count} items, {file.limit} of them to search on"
    if file.shuffle:
        yield "shuffle: items are not shuffled, but which of them the search sees is random"
    if file.apply_chat_template and not chat:
        yield (
            "apply_chat_template: the merged model's tokenizer has no chat template, where lm-eval "
            "stops; prompts are asked as they are"
        )
    for entry in file.tasks:
        if entry.weight == 0:
            yield f"task {entry.name} has weight 0 and is not measured"
        elif entry.metric.startswith("perplexity,"):
            yield f"task {entry.name}: perplexity counts as the mean log-likelihood, per item"
