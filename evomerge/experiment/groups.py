"""Entries of a fitness file that name a group of lm-eval's tasks: one task for each that it holds.

An entry `mmlu` becomes the tasks `mmlu/mmlu_anatomy`, `mmlu/mmlu_astronomy`, ...; an objective's
weight on `mmlu` is spread over them as lm-eval averages the group.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from evomerge.errors import ConfigurationError, EvomergeError, Problem
from evomerge.fitness.lm_eval_groups import TaskGroup, find_group
from evomerge.records import Objective

Entries = Mapping[str, Mapping[str, Any]]  # task -> its entry in a fitness file


def expand_groups(entries: Entries) -> dict[str, dict[str, Any]]:
    """The entries, with those of groups replaced by entries of their tasks.

    Raises:
        ConfigurationError: the problems of all groups at once; or a group is to lend its prompts.
    """
    expanded: dict[str, dict[str, Any]] = {}
    problems: list[Problem] = []
    for name, entry in entries.items():
        try:
            if _group_of(entry.get("of_entry") or {}) is not None:
                what = f"{entry['of']!r} is a group, which lends no prompts"
                hint = "give one of its tasks an entry, and name that"
                raise ConfigurationError(Problem("of", what, hint))
            group = _group_of(entry)
            made = {name: dict(entry)} if group is None else _of_group(name, entry, group)
        except EvomergeError as error:
            problems += [Problem(f"task {name}", str(p)) for p in error.problems]
            continue
        if taken := made.keys() & expanded.keys():
            problems.append(Problem(f"task {name}", f"{min(taken)} stands twice"))
        expanded |= made
    if problems:
        raise ConfigurationError(problems)
    return expanded


def spread_weights(
    objectives: Iterable[Objective], entries: Entries, num_items: Mapping[str, int]
) -> tuple[Objective, ...]:
    """The objectives over the tasks of groups, instead of over the groups.

    Args:
        objectives: over the entries.
        entries: before `expand_groups`.
        num_items: of the tasks of the entries after it.
    """
    groups = {name: group for name in entries if (group := _group_of(entries[name])) is not None}
    if not groups:
        return tuple(objectives)
    shares = {name: _shares(name, group, num_items) for name, group in groups.items()}
    spread = []
    for objective in objectives:
        weights = {
            task: weight * share
            for entry, weight in objective.weights.items()
            for task, share in shares.get(entry, {entry: 1.0}).items()
        }
        spread.append(replace(objective, weights=weights))
    return tuple(spread)


def _group_of(entry: Mapping[str, Any]) -> TaskGroup | None:
    task, path = entry.get("task"), entry.get("path")
    if entry.get("kind", "lm_eval") != "lm_eval" or not isinstance(task, str):
        return None
    return find_group(task, None if path is None else Path(path), entry.get("metric"))


def _of_group(name: str, entry: Mapping[str, Any], group: TaskGroup) -> dict[str, dict[str, Any]]:
    made: dict[str, dict[str, Any]] = {}
    for leaf in group.leaves:
        options = {**entry, "task": leaf.task, "path": str(leaf.path)}
        told = {"metric": group.metric, "filter": group.filter}
        options |= {key: value for key, value in told.items() if value and not entry.get(key)}
        if leaf.overrides:
            options["overrides"] = {**leaf.overrides, **(entry.get("overrides") or {})}
        if made.setdefault(f"{name}/{leaf.task}", options) != options:
            what = f"{leaf.task} stands twice in the group, with different settings"
            raise ConfigurationError(Problem(str(entry["task"]), what))
    return made


def _shares(name: str, group: TaskGroup, num_items: Mapping[str, int]) -> dict[str, float]:
    """Task -> its share of the group's weight."""
    sizes: dict[str, float] = {}
    for leaf in group.leaves:
        task = f"{name}/{leaf.task}"
        sizes[task] = sizes.get(task, 0) + (num_items[task] if group.by_size else 1)
    total = sum(sizes.values())
    return {task: size / total for task, size in sizes.items()}
