"""Every candidate answers the same items: all of them, or a random subset."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pydantic import Field

from evomerge.errors import ConfigurationError
from evomerge.fitness.estimators.estimate import (
    EstimatorOptions,
    Items,
    estimate,
    missing_requests,
    parse_options,
    who_can_answer,
)
from evomerge.records import CandidateId, Cohort, Objective, Request, Score


class FixedItems:
    """The mean over a fixed set of items."""

    num_incumbents = 0

    def __init__(self, objectives: Sequence[Objective], items: Items) -> None:
        self._objectives = tuple(objectives)
        self._items = items

    def expected_items(self, num_candidates: int) -> int:
        """Item evaluations that a cohort of this size costs."""
        return num_candidates * sum(map(len, self._items.values()))

    def requests(self, cohort: Cohort) -> list[Request]:
        """Whatever of the items is not answered yet."""
        return missing_requests(cohort.candidates, cohort.measurements, self._items)

    def scores(self, cohort: Cohort) -> dict[CandidateId, Score]:
        """The means; every candidate reaches the same rung."""
        return {
            candidate.id: Score(
                estimate(self._objectives, cohort.measurements, candidate, self._items)
            )
            for candidate in who_can_answer(cohort.candidates, cohort.measurements, self._items)
        }


class Full(FixedItems):
    """All search items: the reference that every other estimator is compared with."""

    summary = "all search items"
    Options = EstimatorOptions  # it has none

    @classmethod
    def make(
        cls, objectives: Sequence[Objective], items: Items, _seed: int, options: Mapping[str, Any]
    ) -> Full:
        """`full` has no options."""
        parse_options(EstimatorOptions, options)
        return cls(objectives, items)


class SubsetOptions(EstimatorOptions):
    """How many items of each task."""

    items: int = Field(ge=2)


class Subset(FixedItems):
    """The same random items for all candidates of a run: cheap, and biased towards its luck."""

    summary = "a random subset of the search items, the same for all candidates"
    Options = SubsetOptions

    @classmethod
    def make(
        cls, objectives: Sequence[Objective], items: Items, seed: int, options: Mapping[str, Any]
    ) -> Subset:
        """`items` of each task, drawn from the run's seed."""
        count = parse_options(SubsetOptions, options).items
        return cls(objectives, draw(items, count, seed))


def draw(items: Items, count: int, seed: int) -> dict[str, tuple[int, ...]]:
    """`count` items of each task in a random order, from the seed.

    Raises:
        ConfigurationError: a task has fewer.
    """
    drawn = {}
    for number, (task, ids) in enumerate(sorted(items.items())):
        if count > len(ids):
            raise ConfigurationError(
                f"estimator: {count} items were asked for; "
                f"task {task} has {len(ids)} for the search"
            )
        order = np.random.default_rng([seed, number]).permutation(len(ids))
        drawn[task] = tuple(int(ids[i]) for i in order[:count])
    return {task: drawn[task] for task in items}
