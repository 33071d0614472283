"""The split of a task's items: for the search, for the last choice, and for the report."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from evomerge.errors import ConfigurationError, Problem
from evomerge.records import ItemId


@dataclass(frozen=True)
class Split:
    """Task -> item ids, for each purpose; no item serves two of them.

    search: what searchers are scored on. fresh: what the finalists are ranked on.
    holdout: what is reported, after everything is chosen.
    """

    search: Mapping[str, tuple[ItemId, ...]]
    fresh: Mapping[str, tuple[ItemId, ...]]
    holdout: Mapping[str, tuple[ItemId, ...]]


def split_items(
    items: Mapping[str, Sequence[ItemId]],
    search: int,
    fresh: int,
    holdout: int | None,
    seed: int,
) -> Split:
    """Split each task's items by a keyed hash of their ids: the same for everyone, always.

    A task with a single item (a fitness that returns one number) has nothing to split: the item
    serves for all three.

    Raises:
        ConfigurationError: a task has too few items; all such tasks at once.
    """
    parts: tuple[dict[str, tuple[ItemId, ...]], ...] = ({}, {}, {})
    problems = []
    for task, ids in items.items():
        if len(ids) == 1:
            for part in parts:
                part[task] = tuple(ids)
            continue
        wanted = search + fresh + (holdout or 1)
        if len(ids) < wanted:
            asked = f"{search} search + {fresh} fresh + {holdout or 'some'} holdout"
            problems.append(Problem(f"task {task}", f"{len(ids)} items, the split asks {asked}"))
            continue
        order = sorted(ids, key=lambda item: _rank(seed, item))
        stop = search + fresh + holdout if holdout is not None else len(order)
        for part, chosen in zip(
            parts,
            (order[:search], order[search : search + fresh], order[search + fresh : stop]),
            strict=True,
        ):
            part[task] = tuple(sorted(chosen))
    if problems:
        raise ConfigurationError(problems)
    return Split(*parts)


def _rank(seed: int, item: ItemId) -> bytes:
    # Not by the task's name: two metrics of the same documents are two tasks, and what one of them
    # searches on the other must not report.
    return hashlib.blake2b(str(item).encode(), key=seed.to_bytes(8, "big")).digest()
