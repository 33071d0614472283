"""The split of a task's items: for the search, for the last choice, and for the report."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from evomerge.errors import ConfigurationError, Problem
from evomerge.records import ItemId

Amount = int | float  # a whole number counts items; a fraction is a share of a task's items


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
    search: Amount,
    fresh: Amount,
    holdout: Amount | None,
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
        first = max(1, counted(search, len(ids)))
        second = first + counted(fresh, len(ids))
        last = len(ids) if holdout is None else second + max(1, counted(holdout, len(ids)))
        if not second < last <= len(ids):
            asked = f"{search} search + {fresh} fresh + {holdout or 'some'} holdout"
            problems.append(Problem(f"task {task}", f"{len(ids)} items, the split asks {asked}"))
            continue
        order = sorted(ids, key=lambda item: _rank(seed, item))
        chosen_of = (order[:first], order[first:second], order[second:last])
        for part, chosen in zip(parts, chosen_of, strict=True):
            part[task] = tuple(sorted(chosen))
    if problems:
        raise ConfigurationError(problems)
    return Split(*parts)


def counted(amount: Amount, total: int) -> int:
    """How many of `total` are meant; of a share, the whole ones."""
    return amount if isinstance(amount, int) else int(amount * total + 1e-9)


def _rank(seed: int, item: ItemId) -> bytes:
    # Not by the task's name: two metrics of the same documents are two tasks, and what one of them
    # searches on the other must not report.
    return hashlib.blake2b(str(item).encode(), key=seed.to_bytes(8, "big")).digest()
